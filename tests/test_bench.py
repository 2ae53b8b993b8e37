"""The benchmark harness on tiny shapes: what it refuses, what it writes. No figure is asserted."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import mixer_kernels
from mixer_kernels import __main__ as command
from mixer_kernels import models
from mixer_kernels.models import S2MLPv2
from mixer_kernels.ops import _native, _registry

# benchmarks/ stands beside the package and is not installed. Last, so that an installed mixer_kernels is not shadowed.
sys.path.append(str(Path(__file__).parent.parent))

from benchmarks import (
    bench_depthwise_conv2d,
    bench_models,
    bench_spatial_shift,
    machine,
    memory,
    race,
    report,
    result_files,
    run,
    shapes,
    table,
    timing,
)
from benchmarks.contest import OURS, PYTORCH, Arena, Contender, Group, tensors
from benchmarks.gate import Gate, WrongResultError

CPU = torch.device("cpu")
SHAPE = (2, 5, 6, 8)
PASSES = ("fwd", "fwd_", "bwd", "bwd_", "fwd+bwd")
CEILINGS = machine.Ceilings(copy_gbps=10.0, matmul_tflops={"float32": 0.1, "bfloat16": 0.1})


def tiny_group(which: str = "fwd", dtype: torch.dtype = torch.float32, *extra: Contender) -> Group:
    """Return the spatial shift's group without torch.compile, which takes seconds."""
    group = bench_spatial_shift.make_group(SHAPE, dtype, which, CPU)
    return without_compile(dataclasses.replace(group, contenders=(*extra, *group.contenders)))


def without_compile(group: Group) -> Group:
    return dataclasses.replace(group, contenders=tuple(c for c in group.contenders if "torch.compile" not in c.name))


def smeared(x: torch.Tensor) -> torch.Tensor:
    """Shift as it is widely copied, between overlapping slices."""
    y = x.clone()
    quarter = x.shape[-1] // 4
    for row in range(1, x.shape[1]):
        y[:, row, :, :quarter] = y[:, row - 1, :, :quarter]
    return y


WRONG_RESULTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "smeared": smeared,
    "nan": lambda x: torch.full_like(x, float("nan")),
    "shape": lambda x: x[:1],
    "one element": lambda x: bench_spatial_shift.reference.spatial_shift(x).index_fill_(0, torch.tensor([0]), 0.5),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", WRONG_RESULTS)
def test_wrong_contender_is_refused_before_any_timing(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_timing(*_: Any) -> None:
        raise AssertionError("something was timed")

    monkeypatch.setattr(timing, "measure", no_timing)
    wrong = Contender("wrong", OURS, lambda x: lambda: WRONG_RESULTS[name](x))
    record = race.run(tiny_group("fwd", dtype, wrong), 0.0, CEILINGS)
    assert record["contenders"][0]["status"] == race.WRONG
    assert record["contenders"][0]["reason"]
    assert not race.is_right(record)
    assert record["speedup"] is None


def test_contender_of_ours_that_raises_stops_the_group() -> None:
    def prepare(x: torch.Tensor) -> Callable[[], torch.Tensor]:
        raise RuntimeError("no such kernel\nand more")

    record = race.run(tiny_group("fwd", torch.float32, Contender("broken", OURS, prepare)), 0.0, CEILINGS)
    assert record["contenders"][0]["reason"] == "RuntimeError: no such kernel"
    assert not any("median_ms" in contender for contender in record["contenders"])


def test_wrong_baseline_is_left_out() -> None:
    wrong = Contender("wrong", PYTORCH, lambda x: lambda: smeared(x))
    record = race.run(tiny_group("fwd", torch.float32, wrong), 0.0, CEILINGS)
    assert "median_ms" not in record["contenders"][0]
    assert record["best_pytorch"] == "eager"
    assert race.is_right(record)
    assert table.untimed([record]) == ["wrong (wrong): spatial_shift (2, 5, 6, 8) float32, forward"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_baseline_that_loses_digits_is_timed(dtype: torch.dtype) -> None:
    def rough(role: str, compiled: bool = False) -> dict[str, Any]:
        def shift(x: torch.Tensor) -> torch.Tensor:
            return bench_spatial_shift.reference.spatial_shift(x) * (1 + 4 * torch.finfo(dtype).eps)

        contender = Contender("rough", role, lambda x: lambda: shift(x), compiled)
        return race.run(tiny_group("fwd", dtype, contender), 0.0, CEILINGS)

    record = rough(PYTORCH)
    assert record["contenders"][0]["status"] == race.LESS_ACCURATE
    assert "median_ms" in record["contenders"][0]
    assert "rough less accurate: result 0: error" in table.complaints([record])[0]
    assert table.untimed([record]) == []
    # Of ours it is wrong, unless PyTorch compiled part of it.
    record = rough(OURS)
    assert record["contenders"][0]["status"] == race.WRONG
    record = rough(OURS, compiled=True)
    assert record["contenders"][0]["status"] == race.LESS_ACCURATE
    assert "median_ms" in record["contenders"][0]
    assert race.is_right(record)


@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_spatial_shift_groups(which: str, dtype: torch.dtype) -> None:
    record = race.run(tiny_group(which, dtype), 0.0, CEILINGS)
    assert [contender["status"] for contender in record["contenders"]] == ["ok"] * len(record["contenders"])
    timed = record["contenders"][0]
    assert timed["quartiles_ms"][0] <= timed["median_ms"] <= timed["quartiles_ms"][1]
    moved = (4 if which == "fwd+bwd" else 2) * torch.Size(SHAPE).numel() * dtype.itemsize
    assert record["bytes"] == moved
    assert timed["gbps"] == pytest.approx(moved / timed["median_ms"] * 1e-6)
    assert timed["percent_of_ceiling"] > 0
    json.dumps(record, allow_nan=False)


@pytest.mark.parametrize("which", ["fwd", "fwd+bwd", "dweight"])
def test_depthwise_groups(which: str) -> None:
    group = bench_depthwise_conv2d.make_group("depthwise_conv2d", (2, 6, 9, 7, 5), torch.float32, which, CPU)
    record = race.run(without_compile(group), 0.0, CEILINGS)
    # PyTorch's own in channels_last may lose more digits than ours.
    assert [contender["status"] for contender in record["contenders"] if contender["role"] == OURS] == ["ok", "ok"]
    assert record["best_pytorch"]
    results = list(tensors(group.exact(*group.make_inputs())))
    assert len(results) == {"fwd": 1, "fwd+bwd": 4, "dweight": 1}[which]
    assert results[-1].shape == {"fwd": (2, 6, 9, 7), "fwd+bwd": (6,), "dweight": (6, 1, 5, 5)}[which]


def test_in_place_contender_starts_from_fresh_data() -> None:
    group = tiny_group("fwd_")
    arena = Arena(group)
    gate = Gate(arena)
    for contender in group.contenders:
        call = arena.bind(contender)
        gate.check(contender, call)
        with group.mode():
            call()
            call()
    eager = next(contender for contender in group.contenders if contender.name == "eager")
    gate.check(eager)


@pytest.fixture
def tiny_model(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Group]:
    """Return a function that makes a model's group, of an architecture that runs in milliseconds."""
    create_model = models.create_model

    def create(name: str, **kwargs: Any) -> S2MLPv2:
        return create_model("s2mlpv2_small_7_224", embed_dims=(8, 16), depths=(1, 1), img_size=28, **kwargs)

    monkeypatch.setattr(bench_models.models, "create_model", create)

    def make(which: str) -> Group:
        group = bench_models.make_group("tiny", (2, 3, 28, 28), torch.float32, which, CPU, by_block=True)
        return without_compile(group)

    return make


@pytest.mark.parametrize("which", ["fwd", "fwd+bwd"])
def test_model_groups(which: str, tiny_model: Callable[[str], Group]) -> None:
    record = race.run(tiny_model(which), 0.0, CEILINGS)
    assert {contender["status"] for contender in record["contenders"]} == {"ok"}
    assert record["ours"] in ("mixer_kernels", "mixer_kernels, channels_last")
    assert record["best_pytorch"] in ("eager", "channels_last")
    assert record["contenders"][0]["images_per_second"] > 0
    assert record["flops"] > 0


def test_model_with_wrong_gradients_is_refused(tiny_model: Callable[[str], Group]) -> None:
    group = tiny_model("fwd+bwd")
    eager = next(contender for contender in group.contenders if contender.name == "eager")

    def prepare(x: torch.Tensor, dy: torch.Tensor) -> Callable[[], tuple[torch.Tensor, ...]]:
        return eager.prepare(x, 2 * dy)

    gate = Gate(Arena(group))
    gate.check(eager)
    with pytest.raises(WrongResultError, match=r"tiny .* result 1 is wrong"):
        gate.check(Contender("doubled", OURS, prepare))


def test_only_models_with_a_fused_layer_are_measured() -> None:
    assert bench_models.has_fused_layers("s2mlpv2_small_7_224")
    names = {group.subject for group in bench_models.groups(CPU, shapes.QUICK)}
    assert names
    assert all(bench_models.has_fused_layers(name) for name in names)


def test_rounds_are_interleaved() -> None:
    trace: list[str] = []
    calls = {name: lambda name=name: trace.append(name) for name in "ab"}
    refreshed: list[int] = []
    times = timing.measure(calls, CPU, 0.0, lambda: refreshed.append(len(trace)))
    assert times["a"].rounds == times["b"].rounds == timing.MIN_ROUNDS
    assert len(refreshed) == 2 * timing.MIN_ROUNDS
    for first, second in zip(refreshed[::2], refreshed[1::2], strict=True):
        assert {trace[first], trace[second]} == {"a", "b"}


def test_slow_calls_are_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SLOW_CALL_SECONDS", 0.03)
    called: list[str] = []

    def call(name: str, seconds: float) -> None:
        called.append(name)
        time.sleep(seconds)

    calls = {name: functools.partial(call, name, seconds) for name, seconds in (("quick", 0.0), ("slow", 0.06))}
    times = timing.measure(calls, CPU, 0.0)
    assert called.count("slow") == times["slow"].rounds == 1
    assert times["slow"].lower_quartile == times["slow"].median == times["slow"].upper_quartile >= 0.06
    assert times["quick"].rounds == timing.MIN_ROUNDS


def test_matmul_rate_of_a_slow_dtype_comes_from_a_small_matmul(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def mm(a: torch.Tensor, b: torch.Tensor) -> None:
        sizes.append(len(a))
        time.sleep(0.002)

    monkeypatch.setattr(torch, "mm", mm)
    monkeypatch.setattr(machine, "COPY_BYTES", {"cpu": 4096})
    monkeypatch.setattr(machine, "CEILING_SECONDS", 0.0)
    monkeypatch.setattr(machine, "LONG_MATMUL_SECONDS", 0.001)
    ceilings = machine.measure_ceilings(CPU, [torch.float32])
    assert set(sizes) == {256}
    assert 0 < ceilings.matmul_tflops["float32"] <= 2 * 256**3 / 0.002 * 1e-12


def test_peak_memory_counts_what_is_alive_together() -> None:
    x = torch.zeros(1000)
    assert memory.peak_bytes(lambda: (x.clone(), x.clone()), CPU) == 8000
    assert memory.peak_bytes(lambda: x.mul_(1), CPU) < 100


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_shapes_name_what_exists_and_quick_is_part_of_full(kind: str) -> None:
    assert {entry.op.removesuffix("_batch_norm") for entry in shapes.OP_SHAPES} <= set(_registry.load_ops())
    assert {entry.model for entry in shapes.MODEL_SHAPES} <= set(models.list_models())
    for op in {entry.op for entry in shapes.OP_SHAPES}:
        quick, full = (set(shapes.op_cases(op, kind, preset)) for preset in shapes.PRESETS)
        assert quick
        assert quick <= full
    quick, full = (set(shapes.model_cases(kind, preset)) for preset in shapes.PRESETS)
    assert quick <= full


@pytest.fixture
def tiny_run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Return the bench command on tiny groups."""
    monkeypatch.setattr(machine, "COPY_BYTES", {"cpu": 4096})
    monkeypatch.setattr(machine, "MATMUL_SIZE", {"cpu": 16})
    monkeypatch.setattr(machine, "CEILING_SECONDS", 0.0)
    monkeypatch.setattr(run, "SECONDS", {"quick": {"op": 0.0}})

    def start(out: Path, *extra: Contender) -> int:
        groups = [tiny_group(which, torch.float32, *extra) for which in ("fwd", "fwd_")]
        monkeypatch.setattr(run, "SUITES", (SimpleNamespace(groups=lambda *_: groups),))
        return run.main(["--device", "cpu", "--details", "--out", str(out)])

    return start


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Intel(R) Xeon(R) Platinum 8488C CPU @ 2.40GHz", "Intel Xeon Platinum 8488C"),
        ("AMD EPYC 7B13 64-Core Processor", "AMD EPYC 7B13 64-Core"),
        ("AMD EPYC", "AMD EPYC family 25"),
    ],
)
def test_a_cpu_without_a_number_is_named_by_its_family(model: str, name: str) -> None:
    assert machine._cpu_name(f"vendor_id\t: Some\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: {model}\n") == name


def test_bench_saves_json_and_picture(
    tiny_run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny_run(tmp_path) == 0
    (path,) = tmp_path.glob("*/quick.json")
    assert path.parent.name == machine.slug(CPU)
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    found = result_files.load(path)
    assert found["versions"]["torch"] == torch.__version__
    assert set(found["ceilings"]["matmul_tflops"]) == {"float32"}
    assert [group["pass"] for group in found["groups"]] == ["fwd", "fwd_"]
    printed = capsys.readouterr().out
    assert "forward, in place" in printed
    assert "eager" in printed
    assert str(path.parent) in printed


def test_bench_fails_when_ours_is_wrong(
    tiny_run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny_run(tmp_path, Contender("smeared", OURS, lambda x: lambda: smeared(x))) == 1
    assert "smeared wrong" in capsys.readouterr().out


@pytest.mark.parametrize(("asked", "measured"), [([], 0), (["--only", "products"], 2)])
def test_quick_preset_leaves_out_products_of_slow_dtypes(
    asked: list[str],
    measured: int,
    tiny_run: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    slow = machine.Ceilings(copy_gbps=10.0, matmul_tflops={"float32": 0.1, "bfloat16": 0.001})
    monkeypatch.setattr(machine, "measure_ceilings", lambda *_: slow)
    groups = [
        tiny_group("fwd", torch.float32),
        *(dataclasses.replace(tiny_group(which, torch.bfloat16), subject="products", flops=1) for which in PASSES[:2]),
    ]
    monkeypatch.setattr(run, "SUITES", (SimpleNamespace(groups=lambda *_: groups),))
    assert run.main(["--device", "cpu", "--out", str(tmp_path), *asked]) == 0
    (path,) = tmp_path.glob("*/quick.json")
    found = result_files.load(path)["groups"]
    assert [group["dtype"] for group in found].count("bfloat16") == measured
    assert ("bfloat16: PyTorch has no fast products" in capsys.readouterr().out) == (measured == 0)


def test_bench_with_nothing_to_do_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--device", "cpu", "--only", "no such group"]) == 1
    assert "no such group" in capsys.readouterr().err


def test_bench_without_kernels_says_why(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(_native, "extension", None)
    monkeypatch.setattr(_native, "_error", "the compiled extension is not built")
    assert run.main(["--device", "cpu"]) == 1
    assert "the compiled extension is not built" in capsys.readouterr().err


def test_bench_outside_a_clone_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "__file__", str(tmp_path / "mixer_kernels" / "__main__.py"))
    monkeypatch.chdir(tmp_path)
    assert command.main(["bench"]) == 1
    assert "clone of the repository" in capsys.readouterr().err


@pytest.fixture
def published(tmp_path: Path) -> tuple[Path, Path]:
    """Return a README and a folder of results of one device."""
    group = race.run(tiny_group(), 0.0, CEILINGS)
    found = {"schema": result_files.SCHEMA, "preset": "quick", **machine.describe(CPU), "conditions": "So and so."}
    found |= {"unavailable": {}, "ceilings": dataclasses.asdict(CEILINGS), "groups": [group]}
    root = tmp_path / "results"
    result_files.save(found, root)
    result_files.save(found, root / "local")
    readme = tmp_path / "README.md"
    readme.write_text(f"# Title\n\n{report.BEGIN}\nold\n{report.END}\n\nThe end.\n", encoding="utf-8")
    return readme, root


def test_report_writes_the_section(published: tuple[Path, Path]) -> None:
    readme, root = published
    assert report.main(["--check"], readme, root) == 1
    assert report.main([], readme, root) == 0
    assert report.main(["--check"], readme, root) == 0
    text = readme.read_text(encoding="utf-8")
    assert text.startswith("# Title\n\n")
    assert text.endswith("\n\nThe end.\n")
    assert "old" not in text
    assert text.count("(2, 5, 6, 8)") == 1
    assert f"torch {torch.__version__}" in text
    image = f"results/{machine.slug(CPU)}/quick.png"
    assert f"]({image})" in text
    assert (readme.parent / image).exists()


def test_report_check_notices_an_edit(published: tuple[Path, Path]) -> None:
    readme, root = published
    report.main([], readme, root)
    readme.write_text(readme.read_text(encoding="utf-8").replace("float32", "float64"), encoding="utf-8")
    assert report.main(["--check"], readme, root) == 1


def test_report_needs_its_markers(published: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    readme, root = published
    readme.write_text("# Title\n", encoding="utf-8")
    assert report.main([], readme, root) == 1
    assert report.BEGIN in capsys.readouterr().err


def test_result_file_of_another_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "quick.json"
    path.write_text('{"schema": 0}', encoding="utf-8")
    with pytest.raises(ValueError, match="is not a result file"):
        result_files.load(path)


def test_readme_holds_the_published_results() -> None:
    assert report.main(["--check"]) == 0


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["info"]) == 0
    printed = capsys.readouterr().out
    assert mixer_kernels.__version__ in printed
    assert torch.__version__ in printed
    for op in _registry.load_ops():
        assert f"{op} on cpu" in printed


def test_info_without_extension_and_triton(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(_native, "extension", None)
    monkeypatch.setattr(_native, "_error", "the compiled extension is not built")
    find_spec = command.importlib.util.find_spec
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None if name == "triton" else find_spec(name))
    assert command.main(["info"]) == 0
    printed = capsys.readouterr().out
    assert "native       the compiled extension is not built" in printed
    assert "triton         not installed" in printed
    assert "C++ compiler" in printed
    assert "pip install triton" in printed


def test_searches_launch_what_they_time() -> None:
    pytest.importorskip("triton")
    from benchmarks import search_tiles, tile_candidates

    for search in tile_candidates.searches("meta"):
        candidates = []
        for candidate, found in search_tiles.launches(search, lambda *_: None):
            candidates.append(candidate)
            assert found, (search.what, candidate)
        assert tuple(candidates) == search.candidates
        assert len(set(map(str, candidates))) == len(candidates) > 1
