"""Stage `negatives` on a local Ray, from scenes that `prepare` made."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.compute as pc
import pytest

from degla_ray.config import NegativesConfig, PrepareConfig, ScenesConfig
from degla_ray.errors import FingerprintMismatch
from degla_ray.negatives.balancing import CANDIDATES
from degla_ray.negatives.pipeline import PLAUSIBLE, generate
from degla_ray.negatives.plausibility import TARGET
from degla_ray.schema import CAPTIONS, NEGATIVES, SCENE_GRAPHS, Kind
from degla_ray.sources.prepare import prepare
from degla_ray.sources.scenes.truth import is_true
from degla_ray.sources.scenes.world import scene_from_json
from degla_ray.stage import read_complete, shard_of

pytestmark = pytest.mark.usefixtures("ray_cluster")
REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def prepared(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("prepared") / "scenes")
    scenes = ScenesConfig(num_images=40, num_validation_images=5, test_items=2)
    prepare(PrepareConfig(source="scenes", output=folder, scenes=scenes, num_shards=2))
    return folder


@pytest.fixture(scope="module")
def finished(prepared: str, tmp_path_factory: pytest.TempPathFactory) -> NegativesConfig:
    config = NegativesConfig(
        prepared=prepared,
        output=str(tmp_path_factory.mktemp("negatives") / "out"),
        num_shards=3,
        plausibility="none",
    )
    generate(config)
    return config


def parts(folder: str) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).glob("*/*.parquet"))}


def test_generate_scenes_writes_false_captions_in_their_shards(finished: NegativesConfig) -> None:
    source, _ = read_complete(finished.prepared, "prepare")
    captions = {r["sample_id"]: r for r in source.read_dataset("captions", CAPTIONS).to_pylist()}
    graphs = {r["image_id"]: r["graph"] for r in source.read_dataset("graphs", SCENE_GRAPHS).to_pylist()}
    storage, manifest = read_complete(finished.output, "negatives")
    counts = manifest["counts"]
    assert counts["captions"] == len(captions) == 135
    rows = storage.read_dataset("negatives", NEGATIVES).to_pylist()
    assert {Kind(r["kind"]) for r in rows} == set(Kind)
    for row in rows:
        caption = captions[row["sample_id"]]
        scene = scene_from_json(graphs[caption["image_id"]])
        assert is_true(caption["caption"], scene) is True
        assert is_true(row["negative"], scene) is not True
    for shard in range(3):
        part = storage.open_parquet("negatives", f"part-{shard:05d}-of-00003.parquet").read()
        assert {shard_of(sample_id, 3) for sample_id in part["sample_id"].to_pylist()} == {shard}
    for kind in Kind:
        states = (counts.get(f"captions.{kind}.{s}", 0) for s in ("ok", "rejected", "not_applicable"))
        assert sum(states) == 135


def test_generate_continued_run_gives_the_bytes_of_an_uninterrupted_one(
    finished: NegativesConfig, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    shutil.copytree(finished.output, output)
    whole = parts(finished.output)
    for part in output.glob("*/part-00001-of-00003.parquet"):
        part.unlink()
    (output / "receipts" / "00001.json").unlink()
    manifest = output / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"complete": true', '"complete": false'))
    kept = (output / "negatives" / "part-00000-of-00003.parquet").stat().st_mtime_ns
    generate(replace(finished, output=str(output)))
    assert parts(str(output)) == whole
    assert (output / "negatives" / "part-00000-of-00003.parquet").stat().st_mtime_ns == kept


def test_generate_other_settings_in_the_same_folder_are_refused(finished: NegativesConfig) -> None:
    other = replace(finished, per_kind=1)
    with pytest.raises(FingerprintMismatch, match=r"identity\.per_kind: 2 there, 1 asked"):
        generate(other)


@pytest.mark.slow  # test_write_balanced_… holds the rule without Ray
def test_generate_plausible_negatives_are_scored_and_every_candidate_is_kept_or_guessable(
    ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = str(tmp_path / "scenes"), str(tmp_path / "out")
    scenes = ScenesConfig(num_images=1100, num_validation_images=0, test_items=0)
    prepare(PrepareConfig(source="scenes", output=folder, scenes=scenes, num_shards=2))
    generate(NegativesConfig(prepared=folder, output=output, num_shards=3, plausibility_preview=200))
    assert not Path(output).exists()
    assert "(candidates)" in capsys.readouterr().out
    counts = generate(NegativesConfig(prepared=folder, output=output, num_shards=3))
    storage = read_complete(output, "negatives")[0]
    rows = storage.read_dataset("negatives", NEGATIVES)
    assert set(rows["kind"].to_pylist()) == set(PLAUSIBLE)
    assert rows["plausibility"].null_count == 0
    for kind in PLAUSIBLE:
        assert counts[f"rejects.{kind}.guessable"] > 0
        scores = rows.filter(pc.equal(rows["kind"], kind))["plausibility"].to_numpy()
        assert abs((scores > TARGET).mean() - 0.5) < 0.1
    told = storage.read_json("blind.json")["accuracy"]
    assert abs(told["replace_nouns"]["ngram_after"] - 0.5) < abs(told["replace_nouns"]["ngram_before"] - 0.5)
    assert not (tmp_path / "out" / CANDIDATES).exists()


def test_negatives_job_on_a_finished_folder_starts_no_ray(finished: NegativesConfig) -> None:
    command = [sys.executable, "jobs/negatives.py", "--prepared", finished.prepared]
    command += ["--output", finished.output, "--num_shards", "3", "--plausibility", "none"]
    command += ["--ray.address", "127.0.0.1:1"]
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "is finished: nothing to do" in done.stdout
    written = read_complete(finished.output, "negatives")[1]["counts"]["rows.swap_nouns"]
    assert re.search(rf"swap_nouns\W+{written:,}\b", done.stdout)


def test_negatives_job_without_prepared_folder_is_one_line(
    tmp_path: Path, run_stage: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_stage("negatives", "--prepared", tmp_path, "--output", tmp_path / "o") == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert len(printed.strip().splitlines()) == 1
