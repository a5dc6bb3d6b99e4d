from benchmarks.configuration_reference import PAGE, reference
from nap_stream.settings.schema import Settings


def test_the_page_is_what_the_settings_say() -> None:
    made = "python -m benchmarks.configuration_reference"
    assert PAGE.read_text(encoding="utf-8") == reference(), f"run {made}"


def test_every_key_of_every_section_stands_there_once() -> None:
    page = reference()
    tree = Settings.model_json_schema()
    keys = [name for name in tree["properties"] if f"## {name}\n" not in page]
    assert keys == ["calibration"]
    lines = [line for line in page.splitlines() if line.startswith("- `")]
    names = [line.split("`")[1] for line in lines]
    assert len(names) == len(set(names))
    for section, definition in (
        ("kafka", "KafkaSettings"),
        ("model.preprocessing", "PreprocessingSettings"),
        ("drift.keys", "KeySettings"),
        ("alerts.webhook", "WebhookSettings"),
    ):
        for key in tree["$defs"][definition]["properties"]:
            assert f"{section}.{key}" in names
