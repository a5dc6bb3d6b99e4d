"""Checks by running a model again: what reaches its output, and what the rows of a map are."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property
from itertools import count
from typing import Any

import torch
from torch import nn

from nap_stream.errors import FeatureMapError
from nap_stream.model.facts import FeatureSite, FunctionCall, HeadSite, TokenRows
from nap_stream.model.graph import Attention
from nap_stream.model.reading import Reader, raw_reader
from nap_stream.model.sites import (
    FunctionInputs,
    Watched,
    is_floating,
    module_input,
    run_eagerly,
    submodule,
)
from nap_stream.text import listed

_FEWEST_IMAGES = 2
_TOLERANCE = 1e-4
"""A row has changed where it differs by more than this part of the map's largest value."""


class Measure:
    """Runs a plain model, ``inner`` of ``model``, on noise of the shape of ``batch``.

    Of two batches of noise the first image differs, and no other.
    """

    def __init__(
        self, model: nn.Module, inner: nn.Module, batch: torch.Tensor, head: HeadSite | None
    ) -> None:
        self._model, self._inner, self._head = model, inner, head
        self._shape = (max(len(batch), _FEWEST_IMAGES), *batch.shape[1:])
        self._like = batch[:0]

    @cached_property
    def _batches(self) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(self._shape, generator=generator).to(self._like)
        other = noise.clone()
        other[0] = torch.randn(self._shape[1:], generator=generator).to(self._like)
        return noise, other

    def _run(self, readers: Sequence[Reader] = (), *, other: bool = False) -> torch.Tensor | None:
        """What enters the head, or the output, on one of the batches."""
        features: list[torch.Tensor] = []
        with torch.inference_mode(), run_eagerly(self._model), ExitStack() as active:
            for reader in readers:
                if not isinstance(reader, Watched):
                    active.enter_context(reader)
            if self._head is not None:
                module = submodule(self._inner, self._head.module)
                hook = module_input(module, self._head.call, features.append)
                active.enter_context(hook)
            watched = [reader for reader in readers if isinstance(reader, Watched)]
            if watched:
                active.enter_context(FunctionInputs(watched))
            output = self._inner(self._batches[other].clone())
        # A head that is still all zeros hides what enters it.
        found = features[0] if features else output
        return found if isinstance(found, torch.Tensor) else None

    @cached_property
    def _plain(self) -> torch.Tensor | None:
        return self._run()

    @cached_property
    def _says_nothing(self) -> bool:
        """Whether the output is the same for other images, as under heads that are all zeros."""
        other = self._run(other=True)
        return other is None or self._plain is None or torch.equal(other, self._plain)

    def reaches(self, site: FeatureSite) -> bool:
        """Whether the output changes where a map is changed."""

        def change(value: Any) -> None:
            value = value[0] if isinstance(value, tuple | list) else value
            value.mul_(-3).add_(1)

        changed = self._run([raw_reader(self._inner, site, change, compiled=False)])
        if changed is None or self._plain is None:
            return True
        return self._says_nothing or not torch.equal(changed, self._plain)

    def varies(self, site: FeatureSite) -> bool:
        """Whether a map is another for another image, as that of a fixed reference is not."""
        return bool(self._changed_rows(site)[1])

    def rows(self, site: FeatureSite) -> FeatureSite:
        """The same site with what the rows of its map are: images, or tiles of images.

        Raises:
            FeatureMapError: A row is of several images, or the rows are in no known order.
        """
        layout = site.layout
        rows, changed = self._changed_rows(site)
        images = self._shape[0]
        if rows == images and changed in ([0], [], list(range(images))):
            return site
        tiles = rows // images
        if tiles > 1 and rows % images == 0:
            if changed == list(range(tiles)):
                return replace(site, layout=replace(layout, tiles=tiles))
            if changed == list(range(0, rows, images)):
                return replace(site, layout=replace(layout, tiles=tiles, tiles_first=True))
        raise FeatureMapError(
            f"the map has {rows} rows for {images} images, and changing the first image changes "
            f"{_listed(changed)}, so that its rows are neither images nor tiles of one image",
            str(site),
            "Name a module in model.feature_layer whose map has rows of images, or wrap the model "
            "so that an image is one row",
        )

    def _changed_rows(self, site: FeatureSite) -> tuple[int, list[int]]:
        """How many rows a map has, and which change with the first image."""
        layout = site.layout
        found: list[torch.Tensor] = []

        def take(value: Any) -> None:
            value = value[0] if isinstance(value, tuple | list) and value else value
            if is_floating(value) and value.ndim == layout.dimensions:
                found.append(value.movedim(layout.images, 0).flatten(1).float().clone())

        for other in (False, True):
            self._run([raw_reader(self._inner, site, take, compiled=False)], other=other)
        if len(found) < 2:  # noqa: PLR2004  one of each batch
            raise FeatureMapError(
                "the model takes another way for other images, without this map",
                str(site),
                "The model must take the same way for every image",
            )
        first, second = found
        limit = _TOLERANCE * first.abs().max()
        changed = (first - second).abs().amax(dim=1) > limit
        return len(first), changed.nonzero().flatten().tolist()

    def class_attention(
        self, attention: Attention, queries: tuple[int, ...], every: Sequence[Attention]
    ) -> FeatureSite | None:
        """The site of a call's attention of class tokens, if they alone reach the classifier.

        Measured: changing what all other tokens take from this attention must leave what enters
        the head as it is, bit for bit, and changing that of these must not. They must be learned
        tokens, in front of those of the image, or the only ones that ask.
        """
        # Where tokens are merged on the way, those in front are the image's too by then.
        first = self.learned_tokens(attention.keys, every)
        first = first or self.learned_tokens(every[0].keys, every)
        if attention.queries == 1:
            queries = (0,)
        else:
            first = first or (1 if queries == (0,) else 0)
            if not queries or max(queries) >= first:
                return None
            others = [token for token in range(attention.queries) if token not in queries]
            untouched = self._run([self._changed(attention, others)])
            if untouched is None or self._plain is None or not torch.equal(untouched, self._plain):
                return None
        touched = self._run([self._changed(attention, list(queries))])
        if touched is None or self._plain is None:
            return None
        if torch.equal(touched, self._plain) and not self._says_nothing:
            return None
        patches = attention.keys - first
        if patches < 1:
            return None
        site = attention.site
        return replace(site, shape=(site.shape[0], 1, patches), tokens=TokenRows(queries, first))

    def learned_tokens(self, keys: int, every: Sequence[Attention]) -> int:
        """How many tokens in front are the same for all images, where they enter attention."""
        entering = [part for part in every if part.keys == keys and part.queries in {1, keys}]
        if not entering:
            return 0
        found: list[torch.Tensor] = []
        attention = entering[0]
        site = attention.site

        def take(value: torch.Tensor) -> None:
            module = submodule(self._inner, site.module)
            first = isinstance(module, nn.MultiheadAttention) and module.batch_first
            found.append(value if first else value.transpose(0, 1))

        def take_call(args: Sequence[Any], kwargs: Any) -> None:
            if site.function == "softmax":
                logits = args[0] if args else kwargs["input"]
                found.append(logits.select(-2, 0) if attention.queries > 1 else logits)
            else:
                found.append(args[1] if len(args) > 1 else kwargs["key"])

        if site.function is None:
            module = submodule(self._inner, site.module)
            self._run([module_input(module, site.call, take, "query")])
        else:
            call = FunctionCall(site.function, site.call)
            self._run([Watched(call, site.layout.dimensions, take_call=take_call)])
        if not found:
            return 0
        value = found[0].reshape(self._shape[0], -1, *found[0].shape[1:])
        axis = -1 if site.function == "softmax" else -2
        tokens = value.movedim(axis, 1).flatten(2)
        same = (tokens == tokens[:1]).all(dim=2).all(dim=0).tolist()
        return next((number for number, equal in enumerate(same) if not equal), 0)

    def _changed(self, attention: Attention, tokens: list[int]) -> Reader:
        site = attention.site
        if site.function is None:
            module = submodule(self._inner, site.module)
            assert isinstance(module, nn.MultiheadAttention)
            return _changed_tokens(module, site.call, tokens)

        def change(result: torch.Tensor) -> torch.Tensor:
            changed = result.clone()
            if attention.queries == 1:
                return changed.mul_(-3).add_(1)
            changed[..., tokens, :] = changed[..., tokens, :] * -3 + 1
            return changed

        call = FunctionCall(site.function, site.call)
        return Watched(call, site.layout.dimensions, change=change)


@contextmanager
def _changed_tokens(
    attention: nn.MultiheadAttention, call: int, changed: list[int]
) -> Iterator[None]:
    calls = count()

    def after(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        if next(calls) != call:
            return None
        tokens = output[0].clone()
        axis = 1 if attention.batch_first else 0
        part = tokens.movedim(axis, 0)
        part[changed] = part[changed] * -3 + 1
        return tokens, output[1]

    with attention.register_forward_hook(after):
        yield


def _listed(rows: Sequence[int]) -> str:
    return f"rows {listed(list(map(str, rows)), 6)}" if rows else "none of them"
