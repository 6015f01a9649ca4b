"""NegCLIP, CE-CLIP, SigLIP-style bias and softened contrast against loops in float64 NumPy."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_objectives_degla import features_of, minus_log_softmax, random_arrays

from degla_ray.cli import from_settings, parse
from degla_ray.config import DataConfig, ModelConfig, ObjectiveConfig, TeacherConfig, TrainConfig
from degla_ray.config.renamed import OVERLAYS
from degla_ray.errors import DeglaError, SettingError
from degla_ray.identity import canonical, flatten
from degla_ray.objectives import losses, next_state
from degla_ray.objectives.degla import Softening, igc, tgc
from degla_ray.objectives.gather import gather

MODEL = ModelConfig(name="scenes-base")
REQUIRED = {"name": "x", "data": {"prepared": "x", "negatives": "y"}, "model": {"name": "scenes-base"}}
SHAPES = {
    "seed": st.integers(0, 2**31),
    "n": st.integers(1, 6),
    "k": st.integers(0, 4),
    "d": st.integers(2, 8),
    "s": st.floats(1.0, 100.0),
}


def doubles(arrays):
    return {name: a.astype(np.float64) for name, a in arrays.items() if a.dtype != bool}, arrays[
        "neg_mask_BK"
    ]


@settings(max_examples=40, deadline=None)
@given(**SHAPES)
def test_negclip_equals_its_two_matrices(seed, n, k, d, s):
    arrays = random_arrays(seed, n, k, d)
    a, mask = doubles(arrays)
    X, Y = a["img_BD"], np.concatenate([a["txt_BD"], a["neg_BKD"][mask]])
    of_images = [minus_log_softmax(z[i], np.delete(z, i)) for i, z in enumerate(s * X @ Y.T)]
    of_texts = [minus_log_softmax(z[i], np.delete(z, i)) for i, z in enumerate(s * Y[:n] @ X.T)]
    found = losses(features_of(arrays), torch.tensor(s), ObjectiveConfig(name="negclip"))
    expected = (np.mean(of_images) + np.mean(of_texts)) / 2
    assert found.keys() == {"loss", "base"}
    assert found["loss"].item() == pytest.approx(expected, rel=2e-5, abs=1e-4)


@settings(max_examples=60, deadline=None)
@given(**SHAPES, target=st.sampled_from(["paper", "released"]), th=st.floats(0, 10))
def test_ceclip_any_shape_and_mask_equals_numpy_reference(seed, n, k, d, s, target, th):
    arrays = random_arrays(seed, n, k, d)
    a, mask = doubles(arrays)
    v, t, neg = a["img_BD"], a["txt_BD"], a["neg_BKD"]
    threshold = th * np.arange(1, k + 1) / max(1, k)
    all_negatives = [neg[j, c] for j in range(n) for c in range(k) if mask[j, c]]
    hinge, imc_i = 0.0, []
    for i in range(n):
        S = s * v[i] @ t[i]
        hinge += sum(max(0.0, threshold[c] + s * v[i] @ neg[i, c] - S) for c in range(k) if mask[i, c])
        to_negatives = [s * t[i] @ x for x in all_negatives]
        if target == "paper":
            imc_i.append(minus_log_softmax(S, to_negatives))
        else:
            imc_i.append(minus_log_softmax(to_negatives[0], to_negatives[1:]) if to_negatives else 0.0)
    config = ObjectiveConfig(name="ceclip", imc_target=target, lambda_cmr=0.4, lambda_imc=0.2)
    state = {"threshold_K": torch.tensor(threshold, dtype=torch.float32)}
    found = losses(features_of(arrays), torch.tensor(s), config, state=state)
    base = losses(features_of(arrays), torch.tensor(s), ObjectiveConfig(name="negclip"))["base"].item()
    expected = {"base": base, "cmr": hinge / max(1, n * k), "imc": np.mean(imc_i)}
    expected["loss"] = base + 0.4 * expected["cmr"] + 0.2 * expected["imc"]
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value, rel=2e-5, abs=2e-4), name


def test_ceclip_threshold_is_one_step_late_clamped_and_counts_what_exists():
    arrays = random_arrays(5, 5, 3, 6)
    arrays["neg_mask_BK"][:] = [[True, True, False]] * 4 + [[True, False, False]]
    a, mask = doubles(arrays)
    config, s = ObjectiveConfig(name="ceclip"), 7.0
    S = s * np.einsum("bd,bd->b", a["img_BD"], a["txt_BD"])
    D = s * np.einsum("bd,bkd->bk", a["img_BD"], a["neg_BKD"]) * mask
    wanted = [S.mean() - D[:, k].sum() / max(1, mask[:, k].sum()) for k in range(3)]
    assert min(wanted) < 0 < max(wanted) < 10  # both sides of the lower clamp are met
    features = features_of(arrays)
    state = next_state(features, torch.tensor(s), config)
    assert state["threshold_K"].tolist() == pytest.approx(np.clip(wanted, 0, 10).tolist(), rel=1e-5)
    first, second = (losses(features, torch.tensor(s), config, state=x) for x in (None, state))
    assert second["cmr"] > first["cmr"]
    assert next_state(features, torch.tensor(s), ObjectiveConfig()) == {}


@settings(max_examples=40, deadline=None)
@given(**SHAPES, bias=st.floats(-12, 3), name=st.sampled_from(["clip", "negclip", "ceclip", "degla"]))
def test_base_with_logit_bias_is_siglips_sum_over_pairs(seed, n, k, d, s, bias, name):
    arrays = random_arrays(seed, n, k, d)
    if name == "clip":
        arrays["neg_mask_BK"][:] = False
    a, mask = doubles(arrays)
    texts = np.concatenate([a["txt_BD"], a["neg_BKD"][mask]])
    total = 0.0
    for i in range(n):
        for j, text in enumerate(texts):
            z = (1.0 if i == j else -1.0) * (s * a["img_BD"][i] @ text + bias)
            total += max(0.0, -z) + math.log1p(math.exp(-abs(z)))
    found = losses(
        features_of(arrays), torch.tensor(s), ObjectiveConfig(name=name), logit_bias=torch.tensor(bias)
    )
    assert found["base"].item() == pytest.approx(total / n, rel=2e-5, abs=1e-4)


@settings(max_examples=40, deadline=None)
@given(**SHAPES, gamma=st.floats(0.0, 4.0), beta=st.floats(0.0, 1.0))
def test_softened_contrast_equals_numpy_reference(seed, n, k, d, s, gamma, beta):
    arrays = random_arrays(seed, n, k, d)
    a, mask = doubles(arrays)

    def expected(anchor, positive, scale):
        rows = []
        for i in range(n):
            z = [scale * anchor[i] @ positive[i]]
            z += [scale * anchor[i] @ a["neg_BKD"][i, c] for c in range(k) if mask[i, c]]
            log_p = [-minus_log_softmax(z[c], z[:c] + z[c + 1 :]) for c in range(len(z))]
            y = [beta / len(z) + (1 - beta) * (c == 0) for c in range(len(z))]
            rows.append(-sum(y[c] * max(-math.expm1(x), 1e-38) ** gamma * x for c, x in enumerate(log_p)))
        return np.mean(rows)

    features, softening = features_of(arrays), Softening(gamma=gamma, smoothing=beta)
    found = igc(features, torch.tensor(s), softening).item()
    # (1 - p)^γ of p near 1 has float32's rounding of p in it
    assert found == pytest.approx(expected(a["img_BD"], a["txt_BD"], s), rel=1e-3, abs=1e-3)
    found = tgc(features, gather(features), 10.0, "own", softening).item()
    assert found == pytest.approx(expected(a["txt_BD"], a["teacher_txt_BD"], 10.0), rel=1e-3, abs=1e-3)


def test_softened_contrast_has_finite_gradients_where_it_is_certain():
    arrays = random_arrays(0, 4, 2, 4)
    arrays["neg_BKD"] = -np.repeat(arrays["img_BD"][:, None], 2, axis=1)
    arrays["txt_BD"] = arrays["img_BD"].copy()
    features = features_of(arrays)
    features.img_BD.requires_grad_()
    igc(features, torch.tensor(100.0), Softening(gamma=0.5, smoothing=0.1)).backward()
    assert features.img_BD.grad.isfinite().all()


ABLATIONS = Path(__file__).parents[2] / "jobs" / "configs" / "ablations"
RECIPE = ["--name=x", "--model.name=scenes-base", "--data.prepared=x", "--data.negatives=y"]
RECIPE.append("--objective.negatives_per_caption=2")


def ablated(name: str, *recipe: str) -> TrainConfig:
    """A recipe of DeGLA under the ablation of that name."""
    return parse(TrainConfig, "", [*RECIPE, *recipe, "--config", str(ABLATIONS / f"{name}.yaml")])


@pytest.mark.parametrize(
    ("name", "changed"),
    {
        "no_igc": {"objective.lambda_igc": 0},
        "no_tgc": {"objective.lambda_tgc": 0},
        "no_distill": {"objective.lambda_distill": 0},
        "frozen_teacher": {"teacher.kind": "frozen"},
        "released": {
            "objective.tgc_negatives": "released",
            "objective.distill_reduction": "sum",
            "objective.lambda_distill": 0.005,
        },
    }.items(),
)
def test_ablation_differs_from_its_recipe_in_its_settings_alone(name, changed):
    assert {path.stem for path in ABLATIONS.iterdir()} >= {name}
    recipe = flatten(canonical(parse(TrainConfig, "", RECIPE)))
    found = flatten(canonical(ablated(name)))
    assert {key: value for key, value in found.items() if value != recipe[key]} == changed


def test_ablation_overrides_a_recipe_that_sets_the_same():
    assert ablated("no_igc", "--objective.lambda_igc=10").objective.lambda_igc == 0


@pytest.mark.parametrize("old", sorted(OVERLAYS))
def test_ablation_by_its_old_name_is_refused_with_the_file_that_replaces_it(old):
    assert (ABLATIONS.parents[2] / OVERLAYS[old]).is_file()
    with pytest.raises(DeglaError, match=rf"objective\.name: .*--config {OVERLAYS[old]}"):
        from_file(old)
    with pytest.raises(DeglaError, match=rf"objective\.name: .*--config {OVERLAYS[old]}"):
        parse(TrainConfig, "", [*RECIPE, f"--objective.name={old}"])


def test_ablation_without_a_term_equals_the_sum_of_the_others():
    features = features_of(random_arrays(5, 4, 3, 6))
    terms = losses(features, torch.tensor(20.0), ObjectiveConfig())
    for name in ("igc", "tgc", "distill"):
        found = losses(features, torch.tensor(20.0), ablated(f"no_{name}").objective)
        left_out = getattr(ObjectiveConfig(), f"lambda_{name}") * terms[name]
        assert found["loss"].item() == pytest.approx((terms["loss"] - left_out).item(), rel=1e-5)
        assert left_out > 1e-3


@pytest.mark.parametrize(
    ("settings_", "setting"),
    [
        ({"name": "clip", "negatives_per_caption": 2}, "negatives_per_caption"),
        ({"label_smoothing": 1.5}, "label_smoothing"),
        ({"focal_gamma": -1.0}, "focal_gamma"),
    ],
)
def test_objective_config_impossible_setting_is_named(settings_, setting):
    with pytest.raises(SettingError, match=setting):
        ObjectiveConfig(**settings_)


def from_file(objective: str) -> TrainConfig:
    """The name alone is set, as in a user's YAML."""
    return from_settings(TrainConfig, REQUIRED | {"objective": {"name": objective}}, "train")


def test_objective_named_in_a_file_has_its_own_number_of_negatives():
    for name, expected in {"clip": 0, "negclip": 1, "ceclip": 4, "degla": 4}.items():
        assert from_file(name).objective.num_negatives == expected


def test_train_config_teacher_none_is_refused_where_a_term_needs_one():
    data = DataConfig(prepared="x", negatives="y")
    with pytest.raises(SettingError, match=r"teacher\.kind: found 'none'.*lambda_distill = 0"):
        TrainConfig(name="x", data=data, model=MODEL, teacher=TeacherConfig(kind="none"))
    bare = ObjectiveConfig(lambda_tgc=0, lambda_distill=0)
    assert not TrainConfig(
        name="x", data=data, model=MODEL, objective=bare, teacher=TeacherConfig(kind="none")
    ).objective.wants_teacher
