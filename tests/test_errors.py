import pickle

import pytest

from nap_stream import errors
from nap_stream.errors import NapStreamError

ALL_ERRORS = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, NapStreamError)
]


@pytest.mark.parametrize("error_type", ALL_ERRORS)
def test_survives_pickling_with_type_and_text(error_type: type[NapStreamError]) -> None:
    error = error_type("the broker said no", "topic images", "Ask it nicely")

    copy = pickle.loads(pickle.dumps(error))

    assert type(copy) is error_type
    assert (copy.problem, copy.where, copy.action) == (error.problem, error.where, error.action)


def test_text_names_place_problem_and_action() -> None:
    error = NapStreamError("cannot be read", "file a.parquet", "Restore it")

    assert str(error) == "file a.parquet: cannot be read. Restore it"


def test_text_without_place_and_action() -> None:
    assert str(NapStreamError("nothing to do")) == "nothing to do"


@pytest.mark.parametrize("error_type", ALL_ERRORS)
def test_the_tree_in_the_module_docstring_names_every_error(
    error_type: type[NapStreamError],
) -> None:
    assert error_type.__name__ in (errors.__doc__ or "")
