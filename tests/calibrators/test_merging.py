"""Parts of the data merge to the whole, bit for bit, and nothing else merges."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from calibrator_data import Floats, histogram_of
from hypothesis import given, settings
from hypothesis import strategies as st

from quantlab.calibrators import (
    CalibrationTable,
    Histogram,
    Provenance,
    load_histograms,
    measure_tensor,
    range_methods,
    save_histograms,
)
from quantlab.calibrators.extremes import Extremes
from quantlab.calibrators.measure import measure_extremes, table_degradations
from quantlab.calibrators.merging import (
    Part,
    add_histograms,
    check_histograms,
    check_parts,
    merge_extremes,
    merge_odd,
    merge_part_degradations,
    merge_provenance,
    merged_method,
)
from quantlab.degradation import Degradation, DegradationCode, merge_degradations
from quantlab.errors import CalibrationError, ConfigError, EngineMismatch

PROVENANCE = Provenance(
    "0.1.0", "observed", "m.onnx", "a" * 64, "b" * 64, {"x": (1, 3)}, {"scale": 255}, "c" * 64, (), 99.9
)


def provenance(*samples: str, **values: object) -> Provenance:
    return dataclasses.replace(PROVENANCE, samples=tuple(sorted(samples)), **values)  # type: ignore[arg-type]


def calibrated(data: Mapping[str, Sequence[Floats]], samples: Sequence[str]) -> tuple[CalibrationTable, Histograms]:
    histograms = {name: histogram_of(np.concatenate(arrays)) for name, arrays in data.items()}
    tensors = tuple(measure_tensor(name, histograms[name], range_methods(99.9)) for name in sorted(histograms))
    table = CalibrationTable(
        "mse", len(samples), tensors, provenance(*samples), merge_degradations(table_degradations(tensors, "mse"))
    )
    return table, histograms


Histograms = dict[str, Histogram]


def merged(parts: Sequence[tuple[CalibrationTable, Histograms]]) -> tuple[CalibrationTable, Histograms]:
    named = [Part(f"part{number}", table) for number, (table, _) in enumerate(parts)]
    check_parts(named)
    sums: Histograms = {}
    for part, (_, histograms) in zip(named, parts, strict=True):
        check_histograms(part, histograms)
        add_histograms(sums, {name: histogram.copy() for name, histogram in histograms.items()})
    method = merged_method(named, None)
    tensors = tuple(measure_tensor(name, sums[name], range_methods(99.9)) for name in sorted(sums))
    degradations = merge_degradations([*merge_part_degradations(named), *table_degradations(tensors, method)])
    n_samples = sum(table.n_samples for table, _ in parts)
    return CalibrationTable(method, n_samples, tensors, merge_provenance(named, "0.1.0", "m.onnx"), degradations), sums


@st.composite
def splits(draw: st.DrawFn) -> tuple[list[dict[str, Floats]], list[list[int]]]:
    """Samples of a few tensors with all kinds of values, and a split of them into parts in any order."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.integers(2, 12))
    samples = []
    for _ in range(n):
        scale = 10.0 ** rng.uniform(-6, 6)
        values = (rng.standard_t(2, draw(st.integers(1, 300))) * scale).astype(np.float32)
        values[rng.random(values.size) < 0.1] = 0.0
        odd = values.copy()
        odd[rng.random(values.size) < 0.05] = draw(st.sampled_from([np.nan, np.inf, -np.inf, -1e-42]))
        odd[0] = scale
        samples.append({"plain": values, "relu": np.maximum(values, 0), "odd": odd})
    k = draw(st.integers(2, min(n, 5)))
    order = draw(st.permutations(range(n)))
    cuts = sorted(draw(st.lists(st.integers(1, n - 1), min_size=k - 1, max_size=k - 1, unique=True)))
    return samples, [list(order[a:b]) for a, b in zip([0, *cuts], [*cuts, n], strict=True)]


@settings(max_examples=30, deadline=None)
@given(case=splits())
def test_parts_in_any_order_give_the_whole(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[list[dict[str, Floats]], list[list[int]]]
) -> None:
    samples, parts = case

    def calibrate(numbers: Sequence[int]) -> tuple[CalibrationTable, Histograms]:
        data = {name: [samples[i][name] for i in numbers] for name in samples[0]}
        return calibrated(data, [f"{i:064x}" for i in numbers])

    whole_table, whole = calibrate(range(len(samples)))
    table, histograms = merged([calibrate(numbers) for numbers in parts])
    assert table.to_json() == whole_table.to_json()
    folder = tmp_path_factory.mktemp("merging")
    save_histograms(folder / "whole.npz", whole)
    save_histograms(folder / "merged.npz", histograms)
    assert (folder / "merged.npz").read_bytes() == (folder / "whole.npz").read_bytes()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_sign_of_zero_does_not_depend_on_the_order(order: tuple[int, int]) -> None:
    values = [np.float32([0.0, 1.0]), np.float32([-0.0, 1.0])]
    whole, _ = calibrated({"x": values}, ["1" * 64, "2" * 64])
    parts = [calibrated({"x": [values[i]]}, [str(i + 1) * 64]) for i in order]
    assert merged(parts)[0].to_json() == whole.to_json()


def test_files_of_the_same_histograms_are_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No time of writing is in the archive."""
    histograms = {"x": histogram_of(np.linspace(-1, 1, 1000))}
    save_histograms(tmp_path / "a.npz", histograms)
    monkeypatch.setattr("time.time", lambda: 2_000_000_000.0)
    save_histograms(tmp_path / "b.npz", load_histograms(tmp_path / "a.npz"))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


ONE = calibrated({"x": [np.float32([1.0, 2.0])], "y": [np.float32([-3.0, 0.0])]}, ["1" * 64, "2" * 64])
TWO = calibrated({"x": [np.float32([5.0])], "y": [np.float32([4.0])]}, ["3" * 64])


def parts(*tables: CalibrationTable) -> list[Part]:
    return [Part(f"part{number}", table) for number, table in enumerate(tables)]


def changed(table: CalibrationTable, **values: object) -> CalibrationTable:
    return dataclasses.replace(table, provenance=dataclasses.replace(table.provenance, **values))  # type: ignore[arg-type]


class TestRefused:
    @pytest.mark.parametrize("n", [0, 1])
    def test_fewer_than_two(self, n: int) -> None:
        with pytest.raises(ConfigError, match="nothing to merge"):
            check_parts(parts(ONE[0], TWO[0])[:n])

    @pytest.mark.parametrize(
        ("field", "value", "word", "said"),
        [
            ("model_sha256", "f" * 64, "model", "f" * 64),
            ("graph_sha256", "e" * 64, "prepared graph", "e" * 64),
            ("shapes", {"x": (1, 4)}, "input shapes", "x:1x4"),
            ("shapes", {}, "input shapes", "as exported"),
            ("preprocess_sha256", "d" * 64, "preprocessing", "d" * 64),
            ("preprocess_sha256", "", "preprocessing", "ready tensors"),
            ("percentile", 99.99, "percentile", "99.99"),
        ],
    )
    def test_what_must_match(self, field: str, value: object, word: str, said: str) -> None:
        with pytest.raises(EngineMismatch, match=f"differ in the {word}") as caught:
            check_parts(parts(ONE[0], changed(TWO[0], **{field: value})))
        assert said in str(caught.value.got) and "part1" in str(caught.value.got)
        assert "part0" in str(caught.value.expected)

    def test_names_and_versions_may_differ(self) -> None:
        check_parts(parts(ONE[0], changed(TWO[0], model="copy.onnx", quantlab="0.2.0")))

    def test_other_tensors(self) -> None:
        other = dataclasses.replace(TWO[0], tensors=TWO[0].tensors[:1])
        with pytest.raises(EngineMismatch, match="set of tensors") as caught:
            check_parts(parts(ONE[0], other))
        assert "y" in str(caught.value.got)

    def test_a_part_may_lack_what_it_says_was_absent(self) -> None:
        absent = Degradation.of(DegradationCode.ABSENT_TENSORS, "tensors had no values", ["y"])
        other = dataclasses.replace(TWO[0], tensors=TWO[0].tensors[:1], degradations=(absent,))
        for both in (parts(ONE[0], other), parts(other, ONE[0])):
            check_parts(both)
            assert merge_odd(both, "y") == (None, 1)
            assert merge_part_degradations(both) == ()
        assert other.n_samples == 1

    def test_imported_ranges(self) -> None:
        with pytest.raises(CalibrationError, match="imported"):
            check_parts(parts(ONE[0], changed(TWO[0], source="net.calib")))

    def test_overlap_says_how_many_and_which(self) -> None:
        other = changed(TWO[0], samples=("1" * 64, "2" * 64, "3" * 64))
        with pytest.raises(CalibrationError, match="2 samples are in more than one") as caught:
            check_parts(parts(ONE[0], other))
        assert "1" * 16 + ", " + "2" * 16 in str(caught.value.got)
        assert "part0 and part1" in str(caught.value.got)

    def test_duplicates_within_a_part_are_the_datas_own(self) -> None:
        check_parts(parts(changed(ONE[0], samples=("1" * 64, "1" * 64)), TWO[0]))

    @pytest.mark.parametrize("change", ["missing", "further", "count", "minimum", "maximum", "nan"])
    def test_histograms_of_another_table(self, change: str) -> None:
        table, histograms = ONE[0], {name: histogram.copy() for name, histogram in ONE[1].items()}
        if change == "missing":
            del histograms["x"]
        elif change == "further":
            histograms["z"] = histogram_of([1.0])
        else:
            values = {"count": [1.5], "minimum": [0.5], "maximum": [3.0], "nan": [np.nan]}[change]
            histograms["x"] = histogram_of([1.0, 2.0, *values] if change in ("count", "nan") else [*values, 1.0])
        with pytest.raises(CalibrationError, match=r"part0 do(es)? not belong"):
            check_histograms(Part("part0", table), histograms)


class TestMethod:
    def test_that_of_the_parts_or_the_requested_one(self) -> None:
        both = parts(ONE[0], TWO[0])
        assert merged_method(both, None) == "mse"
        assert merged_method(both, "entropy") == "entropy"

    def test_parts_that_disagree_need_one(self) -> None:
        both = parts(ONE[0], TWO[0].with_method("entropy"))
        with pytest.raises(ConfigError, match="different methods") as caught:
            merged_method(both, None)
        assert caught.value.got == "entropy, mse"
        assert merged_method(both, "minmax") == "minmax"

    @pytest.mark.parametrize("requested", ["auto", None])
    def test_auto_needs_the_images(self, requested: str | None) -> None:
        tables = [dataclasses.replace(table, method="auto" if requested is None else "mse") for table, _ in (ONE, TWO)]
        with pytest.raises(ConfigError, match="needs the images") as caught:
            merged_method(parts(*tables), requested)
        assert "--method mse" in str(caught.value.hint)

    def test_unknown(self) -> None:
        with pytest.raises(ConfigError, match="no range method"):
            merged_method(parts(ONE[0], TWO[0]), "mean")


def extremes_only(data: Mapping[str, Sequence[Floats]], samples: Sequence[str]) -> CalibrationTable:
    entries = []
    for name in sorted(data):
        extremes = Extremes()
        for array in data[name]:
            extremes.add(array)
        entries.append(measure_extremes(name, extremes))
    return CalibrationTable("minmax", len(samples), tuple(entries), provenance(*samples), ())


EXTREMES = extremes_only({"x": [np.float32([5.0])], "y": [np.float32([4.0])]}, ["3" * 64])


class TestExtremesOnly:
    def test_parts_give_the_whole(self) -> None:
        data = {name: [np.float32([1, 2, 5]), np.float32([-3, -0.0, 4])] for name in ("x", "y")}
        data["y"][1][0] = np.nan
        whole = extremes_only(data, ["1" * 64, "2" * 64])
        both = [extremes_only({k: [v[i]] for k, v in data.items()}, [str(i + 1) * 64]) for i in (0, 1)]
        for order in ((0, 1), (1, 0)):
            assert merge_extremes(parts(*(both[i] for i in order))) == whole.tensors

    def test_other_methods_cannot_be_had(self) -> None:
        both = parts(EXTREMES, EXTREMES)
        assert merged_method(both, None) == "minmax"
        with pytest.raises(ConfigError, match="min-max only"):
            merged_method(both, "entropy")

    def test_do_not_mix_with_histograms(self) -> None:
        with pytest.raises(EngineMismatch, match="kind"):
            check_parts(parts(ONE[0], EXTREMES))


def degraded(table: CalibrationTable, *found: Degradation) -> CalibrationTable:
    return dataclasses.replace(table, degradations=found)


class TestDegradations:
    def test_samples_are_added_up_and_the_rest_is_kept_once(self) -> None:
        code = DegradationCode
        assumed = Degradation(code.ASSUMED_PREPROCESS, "pixels were stretched")
        first = degraded(
            ONE[0],
            assumed,
            Degradation.of(code.UNREADABLE_SAMPLES, "1 of 3 samples could not be read and were left out", ["b: bad"]),
            Degradation.of(code.LOSSY_DECODE, "images were decoded with a loss: alpha", ["c", "a"]),
            Degradation.of(code.METHOD_FALLBACK, "found again from the merged ranges", ["x"]),
            Degradation(code.PADDED_BATCH, "the last batch of 4 was filled with 2 repeated samples", 2),
        )
        second = degraded(
            TWO[0],
            assumed,
            Degradation.of(
                code.UNREADABLE_SAMPLES, "2 of 3 samples could not be read and were left out", ["a: bad", "c: bad"]
            ),
            Degradation.of(code.LOSSY_DECODE, "images were decoded with a loss: alpha", ["a"]),
            Degradation.of(code.LOSSY_DECODE, "images were decoded with a loss: CMYK", ["z"]),
            Degradation(code.PADDED_BATCH, "the last batch of 4 was filled with 3 repeated samples", 3),
        )
        expected = (
            assumed,
            Degradation.of(code.LOSSY_DECODE, "images were decoded with a loss: CMYK", ["z"]),
            Degradation(code.LOSSY_DECODE, "images were decoded with a loss: alpha", 3, ("a", "a", "c")),
            Degradation(
                code.PADDED_BATCH,
                "the last batches of 2 parts were filled with 5 repeated samples, which are not counted",
                5,
            ),
            Degradation.of(
                code.UNREADABLE_SAMPLES,
                "3 of 6 samples could not be read and were left out",
                ["a: bad", "b: bad", "c: bad"],
            ),
        )
        for order in ((first, second), (second, first)):
            assert merge_degradations(merge_part_degradations(parts(*order))) == expected

    def test_only_some_names_are_kept(self) -> None:
        names = [f"{i:02d}" for i in range(15)]
        found = [
            Degradation.of(DegradationCode.DUPLICATE_SAMPLES, "twice", names[1::2]),
            Degradation.of(DegradationCode.DUPLICATE_SAMPLES, "twice", names[0::2]),
        ]
        (both,) = merge_part_degradations(parts(degraded(ONE[0], found[0]), degraded(TWO[0], found[1])))
        assert both == Degradation.of(DegradationCode.DUPLICATE_SAMPLES, "twice", names)


def test_odd_samples_are_added_up() -> None:
    def odd(table: CalibrationTable, sample: str | None, absent: int) -> CalibrationTable:
        entry = dataclasses.replace(table.tensors[0], non_finite_sample=sample, absent_samples=absent)
        return dataclasses.replace(table, tensors=(entry, *table.tensors[1:]))

    both = parts(odd(ONE[0], "b.png", 2), odd(TWO[0], "a.png", 3))
    assert merge_odd(both, "x") == ("a.png", 5)
    assert merge_odd(parts(odd(ONE[0], "b.png", 0), TWO[0]), "x") == ("b.png", 0)
    assert merge_odd(both, "y") == (None, 0)


class TestProvenance:
    def test_what_was_assumed_by_one_is_not_stated(self) -> None:
        both = parts(ONE[0], changed(TWO[0], preprocess=None))
        assert merge_provenance(both, "9", "n.onnx").preprocess is None
        stated = merge_provenance(parts(ONE[0], TWO[0]), "9", "n.onnx")
        assert (stated.preprocess, stated.quantlab, stated.model) == ({"scale": 255}, "9", "n.onnx")
        assert stated.samples == ("1" * 64, "2" * 64, "3" * 64)

    def test_a_table_that_was_saved_merges_like_a_fresh_one(self, tmp_path: Path) -> None:
        path = tmp_path / "calibration.json"
        path.write_text(ONE[0].to_json())
        loaded = CalibrationTable.load(path)
        check_parts(parts(loaded, TWO[0]))
        assert json.loads(loaded.to_json()) == json.loads(ONE[0].to_json())
