"""Rules, dashboard and webhook with a Prometheus and an Alertmanager that run."""

import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from prometheus_client import Counter, Gauge, Histogram

from nap_stream.alert.webhook import WebhookAlertSink
from nap_stream.clock import SystemClock
from nap_stream.http_server import MetricsServer
from nap_stream.metrics import Metrics
from nap_stream.settings.alerts import AlertSettings, WebhookSettings
from nap_stream.settings.run import MetricsSettings
from tests.alert.test_alertmanager import drift
from tests.deploy.dashboard import for_prometheus, queries
from tests.deploy.rule_cases import whole_metrics
from tests.support.http_receiver import HttpReceiver
from tests.support.prometheus import (
    ask,
    running_alertmanager,
    running_prometheus,
    scrape_config,
    values,
    written,
)
from tests.support.waiting import PATIENCE_S, wait_until

# One process starts them, for all of these tests.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("prometheus")]
Alert = dict[str, Any]


@dataclass(frozen=True)
class Site:
    """A monitor's metrics, and who watches them: ``receiver`` is whom Alertmanager tells."""

    metrics: Metrics
    instance: str
    prometheus: str
    alertmanager: str
    receiver: HttpReceiver

    def told(self, name: str, status: str) -> list[Alert]:
        """What the receiver was told of an alert, in this state."""
        sent = [alert for request in self.receiver.requests for alert in request.tree["alerts"]]
        return [
            alert
            for alert in sent
            if alert["labels"]["alertname"] == name and alert["status"] == status
        ]

    def wait_until_told(self, name: str, status: str, times: int = 1) -> Alert:
        wait_until(lambda: len(self.told(name, status)) >= times, f"{name} {status}, {times} times")
        return self.told(name, status)[-1]

    def values(self, expr: str) -> list[float]:
        """What a query gives now; not what is no number."""
        return values(self.prometheus, expr)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder, receiver, metrics = tmp_path_factory.mktemp("site"), HttpReceiver(), whole_metrics()
    metrics.gap_offsets.inc(34)
    with ExitStack() as stack:
        stack.enter_context(receiver.listening())
        config = written(folder / "alertmanager.yaml", _routes(receiver.url))
        alertmanager = stack.enter_context(running_alertmanager(folder, config))
        server = MetricsServer(MetricsSettings(port=0), metrics.registry, tuple)
        stack.callback(server.close)
        instance = f"127.0.0.1:{server.port}"
        config = written(folder / "prometheus.yaml", scrape_config(instance, alertmanager))
        prometheus = stack.enter_context(running_prometheus(folder, config))
        yield Site(metrics, instance, prometheus, alertmanager, receiver)


def _routes(url: str) -> dict[str, Any]:
    times = {"group_wait": "0s", "group_interval": "1s", "repeat_interval": "2s"}
    return {
        "route": {"receiver": "test", "group_by": ["alertname", "instance"], **times},
        "receivers": [{"name": "test", "webhook_configs": [{"url": url}]}],
    }


def test_an_alert_fires_is_repeated_and_ends(site: Site) -> None:
    gauge = site.metrics.alert_firing.labels("critical")
    gauge.set(1)
    alert = site.wait_until_told("NapStreamDriftCritical", "firing", times=2)
    assert alert["labels"] == {
        "alertname": "NapStreamDriftCritical",
        "severity": "critical",
        "job": "nap-stream",
        "instance": site.instance,
    }
    assert f"The drift alert of {site.instance} fires" in alert["annotations"]["description"]
    assert alert["annotations"]["runbook"] == "docs/alerts.md#drift-firing"
    gauge.set(0)
    ended = site.wait_until_told("NapStreamDriftCritical", "resolved")
    # An alert whose metrics cannot be had for a second ends, and begins anew.
    began = {each["startsAt"] for each in site.told("NapStreamDriftCritical", "firing")}
    assert ended["startsAt"] in began
    assert ended["endsAt"] > ended["startsAt"]


def test_a_gap_before_the_first_scrape_is_told(site: Site) -> None:
    site.wait_until_told("NapStreamGap", "firing")
    alert = site.told("NapStreamGap", "firing")[0]
    assert alert["annotations"]["description"].startswith("34 offsets are missing")


def test_what_is_silenced_is_not_told(site: Site) -> None:
    name = "NapStreamKeysFiring"
    matcher = {"name": "alertname", "value": name, "isRegex": False, "isEqual": True}
    silence = {
        "matchers": [matcher],
        "createdBy": "ada",
        "comment": "the lens is being cleaned",
        "startsAt": "2000-01-01T00:00:00Z",
        "endsAt": "2100-01-01T00:00:00Z",
    }
    made = ask(f"{site.alertmanager}/api/v2/silences", body=silence)["silenceID"]
    site.metrics.keys_firing.set(3)

    def is_held() -> bool:
        alerts = ask(f"{site.alertmanager}/api/v2/alerts", filter=f"alertname={name}")
        return [alert["status"]["silencedBy"] for alert in alerts] == [[made]]

    wait_until(is_held, f"{name} to be silenced")
    site.metrics.unscored_alert_firing.labels("warning").set(1)
    site.wait_until_told("NapStreamUnscored", "firing", times=2)
    assert not site.told(name, "firing")
    url = f"{site.alertmanager}/api/v2/silence/{made}"
    urllib.request.urlopen(urllib.request.Request(url, method="DELETE")).close()
    assert site.wait_until_told(name, "firing")["annotations"]["description"].startswith(
        f"The alerts of 3 keys of {site.instance} fire."
    )


def test_the_monitor_itself_tells_alertmanager(site: Site) -> None:
    url = f"{site.alertmanager}/api/v2/alerts"
    webhook = WebhookSettings(url=url, timeout_s=PATIENCE_S)
    sink = WebhookAlertSink(AlertSettings(webhook=webhook), webhook, SystemClock())
    try:
        sink.publish(drift())
        alert = site.wait_until_told("NapStreamDrift", "firing", times=2)
        assert alert["labels"]["severity"] == "warning"
        sink.publish(drift("resolved"))
        site.wait_until_told("NapStreamDrift", "resolved")
    finally:
        sink.close()


def test_every_query_of_the_dashboard_has_data(site: Site) -> None:
    asked = {where: for_prometheus(expr, site.instance) for where, expr in queries()}
    without: list[str] = [*asked]

    def have_data() -> bool:
        _count_on(site.metrics)
        without[:] = [where for where in without if not site.values(asked[where])]
        return not without

    assert not site.values("nap_stream_no_such_metric")
    wait_until(have_data, lambda: f"data of {without}")


def _count_on(metrics: Metrics) -> None:
    """Have every series of the metrics move, and none be without a number."""
    for collector in vars(metrics).values():
        labelled = getattr(collector, "_labelnames", ())
        for each in collector._metrics.values() if labelled else [collector]:
            match each:
                case Counter():
                    each.inc()
                case Gauge():
                    each.set(1)
                case Histogram():
                    each.observe(0.1)
