"""Drift, accumulated batch by batch, against one float64 computation on the whole arrays."""

from __future__ import annotations

import math

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import rel_entr, softmax

from quantlab.harness.comparison import OutputDrift
from quantlab.harness.drift import ClassificationMeter, OutputMeter, classification_output

Floats = NDArray[np.float32]
VALUES = st.floats(-100, 100, width=32)


def outputs(n: int = 60, shape: tuple[int, ...] = (10,), seed: int = 0) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(seed)
    reference = (rng.standard_normal((n, *shape)) * 3).astype(np.float32)
    return reference, (reference + rng.standard_normal(reference.shape) * 0.1).astype(np.float32)


def metered(reference: Floats, value: Floats, cuts: list[int] | None = None, *, scores: bool = True) -> OutputDrift:
    meter = OutputMeter("y", scores)
    for expected, got in zip(np.split(reference, cuts or []), np.split(value, cuts or []), strict=True):
        meter.add(expected, got)
    return meter.result(len(reference))


class TestOutputMeter:
    @pytest.mark.parametrize("shape", [(10,), (2,), (3, 4, 5), ()])
    def test_equals_the_whole(self, shape: tuple[int, ...]) -> None:
        reference, value = outputs(shape=shape)
        a, b = (x.reshape(60, -1).astype(np.float64) for x in (reference, value))
        drift = metered(reference, value, [7, 7, 31])
        assert drift.sqnr_db == pytest.approx(10 * math.log10(np.sum(a * a) / np.sum((a - b) ** 2)), rel=1e-12)
        cosines = [x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(a, b, strict=True)]
        assert drift.cosine == pytest.approx(np.mean(cosines), rel=1e-12)
        assert drift.max_abs_error == np.abs(a - b).max()
        expected = rel_entr(softmax(a, axis=1), softmax(b, axis=1)).sum(axis=1).mean()
        assert drift.kl_nats == pytest.approx(expected, rel=1e-9, abs=1e-15)
        assert (drift.output, drift.non_finite, drift.constant) == ("y", 0, False)

    @settings(deadline=None)
    @given(
        pair=st.integers(1, 12).flatmap(lambda n: st.tuples(*[hnp.arrays(np.float32, (n, 4), elements=VALUES)] * 2)),
        data=st.data(),
    )
    def test_any_split_gives_the_same(self, pair: tuple[Floats, Floats], data: st.DataObject) -> None:
        cuts = sorted(data.draw(st.lists(st.integers(0, len(pair[0])), max_size=4)))
        whole, parts = metered(*pair), metered(*pair, cuts)
        for name in ("sqnr_db", "cosine", "max_abs_error", "kl_nats"):
            assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-9, abs=1e-9), name
        assert (parts.non_finite, parts.constant) == (whole.non_finite, whole.constant)

    def test_identical_outputs(self) -> None:
        reference, _ = outputs()
        drift = metered(reference, reference)
        assert (drift.sqnr_db, drift.max_abs_error, drift.kl_nats) == (math.inf, 0.0, 0.0)
        assert drift.cosine == pytest.approx(1.0, abs=1e-12)

    @pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
    def test_broken_values_are_counted_and_their_samples_left_out(self, broken: float) -> None:
        reference, value = outputs()
        value[3, 2] = value[3, 5] = value[40, 0] = broken
        kept = np.delete(np.arange(60), [3, 40])
        drift = metered(reference, value, [20])
        assert drift.non_finite == 3
        clean = metered(reference[kept], value[kept])
        assert (drift.sqnr_db, drift.cosine, drift.kl_nats) == pytest.approx(
            (clean.sqnr_db, clean.cosine, clean.kl_nats)
        )

    def test_a_broken_reference_is_left_out_too(self) -> None:
        reference, value = outputs()
        reference[5, 1] = math.nan
        drift = metered(reference, value)
        assert math.isfinite(drift.sqnr_db)
        assert drift.non_finite == 0, "the reference's own row counts it"
        assert metered(reference, reference).non_finite == 1

    def test_nothing_usable_is_no_number(self) -> None:
        reference, value = outputs()
        value[:] = math.nan
        drift = metered(reference, value)
        assert drift.non_finite == value.size
        assert all(math.isnan(x) for x in (drift.sqnr_db, drift.cosine, drift.max_abs_error, drift.kl_nats or 0.0))

    def test_no_scores_no_kl(self) -> None:
        assert metered(*outputs(), scores=False).kl_nats is None

    def test_a_reference_of_zeros(self) -> None:
        zero = np.zeros((4, 3), np.float32)
        assert metered(zero, zero).sqnr_db == math.inf
        assert metered(zero, zero).cosine == 1.0
        assert metered(zero, zero + 1).sqnr_db == -math.inf
        assert metered(zero, zero + 1).cosine == 0.0

    @pytest.mark.parametrize(("n", "constant"), [(1, False), (2, True), (9, True)])
    def test_constant_outputs(self, n: int, constant: bool) -> None:
        reference, _ = outputs(n)
        value = np.repeat(reference[:1], n, axis=0)
        assert metered(reference, value, [1]).constant is constant
        value[-1, 0] += 1
        assert metered(reference, value, [1]).constant is False

    def test_float16_does_not_overflow(self) -> None:
        reference = np.full((2, 3), 60000, np.float16)
        assert metered(reference, -reference).max_abs_error == 120000.0

    def test_large_scores_have_a_finite_kl(self) -> None:
        reference = np.float32([[1e4, 0], [0, 1e4]])
        drift = metered(reference, reference[::-1].copy())
        assert drift.kl_nats == pytest.approx(1e4)


def decided(reference: Floats, value: Floats, labels: list[int | None], cuts: list[int] | None = None):
    meter = ClassificationMeter()
    for a, b, index in zip(
        np.split(reference, cuts or []),
        np.split(value, cuts or []),
        np.split(np.arange(len(labels)), cuts or []),
        strict=True,
    ):
        meter.add(a, b, [labels[i] for i in index])
    return meter.result()


class TestClassification:
    def test_equals_a_loop(self) -> None:
        reference, value = outputs(300)
        value += np.random.default_rng(1).standard_normal(value.shape).astype(np.float32)
        labels = [None if i % 5 == 0 else int(reference[i].argmax()) if i % 3 else i % 10 for i in range(300)]
        counts = {"agreement": 0, "n_labelled": 0, "top1": 0, "top5": 0, "reference_top1": 0, "lost": 0, "won": 0}
        for a, b, label in zip(reference, value, labels, strict=True):
            counts["agreement"] += a.argmax() == b.argmax()
            if label is None:
                continue
            counts["n_labelled"] += 1
            counts["top1"] += b.argmax() == label
            counts["top5"] += label in np.argsort(-b)[:5]
            counts["reference_top1"] += a.argmax() == label
            counts["lost"] += a.argmax() == label != b.argmax()
            counts["won"] += b.argmax() == label != a.argmax()
        got = decided(reference, value, labels, [1, 50, 50, 299])
        assert got.n == 300
        assert {"lost": got.flips_to_wrong, "won": got.flips_to_right} | {
            name: getattr(got, name) for name in counts if name not in ("lost", "won")
        } == counts
        assert got.flips_to_wrong > 0
        assert got.top1 == got.reference_top1 - got.flips_to_wrong + got.flips_to_right
        assert got.delta_pp == pytest.approx(100 * (got.top1 - got.reference_top1) / got.n_labelled)

    def test_ties_go_to_the_first_class_and_against_the_variant(self) -> None:
        flat = np.zeros((1, 10), np.float32)
        first = decided(flat, flat, [0])
        assert (first.top1, first.top5, first.agreement) == (1, 0, 1)
        assert decided(flat, flat, [9]).top1 == 0
        five = np.float32([[1, 1, 1, 1, 1, 0, 0, 0]])
        assert decided(five, five, [4]).top5 == 1
        six = np.float32([[1, 1, 1, 1, 1, 1, 0, 0]])
        assert decided(six, six, [0]).top5 == 0

    @pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("where", [0, 7])
    def test_scores_that_are_not_finite_are_wrong_answers(self, broken: float, where: int) -> None:
        reference = np.float32([np.arange(10)])
        value = reference.copy()
        value[0, where] = broken
        got = decided(reference, value, [9])
        assert (got.top1, got.top5, got.agreement, got.flips_to_wrong) == (0, 0, 0, 1)

    def test_two_broken_answers_do_not_agree(self) -> None:
        broken = np.full((1, 4), math.nan, np.float32)
        got = decided(broken, broken, [0])
        assert (got.agreement, got.top1, got.reference_top1, got.flips_to_wrong) == (0, 0, 0, 0)

    def test_without_labels(self) -> None:
        reference, value = outputs()
        got = decided(reference, value, [None] * 60)
        assert (got.n, got.n_labelled, got.top1, got.top5, got.reference_top1) == (60, 0, 0, 0, 0)
        assert math.isnan(got.delta_pp)

    @pytest.mark.parametrize(("classes", "known"), [(5, False), (6, True)])
    def test_top5_needs_six_classes(self, classes: int, known: bool) -> None:
        reference, value = outputs(4, (classes,))
        assert (decided(reference, value, [0] * 4).top5 is not None) is known


def test_which_output_holds_scores() -> None:
    flat, map_, ints = np.zeros((2, 5), np.float32), np.zeros((2, 3, 4), np.float32), np.zeros((2, 5), np.int64)
    assert classification_output({"a": map_, "b": ints, "c": flat, "d": flat}) == "c"
    assert classification_output({"a": map_, "b": np.zeros((2, 1), np.float32)}) is None
    assert classification_output({}) is None
