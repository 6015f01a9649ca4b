"""The objective against an independent float64 NumPy version, written from the method's formulas as loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from degla_ray.config import ObjectiveConfig
from degla_ray.objectives import Features, losses
from degla_ray.objectives.degla import tgc
from degla_ray.objectives.gather import gather

STUDENT = ("img_BD", "txt_BD", "neg_BKD")


def random_arrays(seed: int, n: int, k: int, d: int) -> dict[str, np.ndarray]:
    """Normalised float32 features and an uneven mask."""
    rng = np.random.default_rng(seed)

    def unit(*shape: int) -> np.ndarray:
        x = rng.normal(size=shape)
        return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)

    return {
        "img_BD": unit(n, d),
        "txt_BD": unit(n, d),
        "neg_BKD": unit(n, k, d),
        "neg_mask_BK": rng.random((n, k)) < 0.6,
        "teacher_img_BD": unit(n, d),
        "teacher_txt_BD": unit(n, d),
        "teacher_neg_BKD": unit(n, k, d),
    }


def features_of(arrays: dict[str, np.ndarray]) -> Features:
    return Features(**{name: torch.from_numpy(array) for name, array in arrays.items()})


def minus_log_softmax(positive: float, negatives: list[float]) -> float:
    """−log e^p / (e^p + Σ e^n), in float64."""
    top = max([positive, *negatives])
    return top - positive + math.log(sum(math.exp(x - top) for x in [positive, *negatives]))


def reference(arrays: dict[str, np.ndarray], s: float, config: ObjectiveConfig) -> dict[str, float]:
    """The four terms, one sum at a time."""
    a = {name: array.astype(np.float64) for name, array in arrays.items() if name != "neg_mask_BK"}
    v, t, n = a["img_BD"], a["txt_BD"], a["neg_BKD"]
    v_hat, t_hat, n_hat = a["teacher_img_BD"], a["teacher_txt_BD"], a["teacher_neg_BKD"]
    mask = arrays["neg_mask_BK"]
    N, K = mask.shape
    own = [[k for k in range(K) if mask[i, k]] for i in range(N)]
    existing = [n[i, k] for i in range(N) for k in own[i]]

    image_to_text, text_to_image, igc_i, tgc_i, distill_i = [], [], [], [], []
    for i in range(N):
        others = [j for j in range(N) if j != i]
        other_texts = [t[j] for j in others] + existing
        image_to_text.append(minus_log_softmax(s * v[i] @ t[i], [s * v[i] @ u for u in other_texts]))
        text_to_image.append(
            minus_log_softmax(s * t[i] @ v[i], [s * t[i] @ v[j] for j in range(N) if j != i])
        )
        igc_i.append(minus_log_softmax(s * v[i] @ t[i], [s * v[i] @ n[i, k] for k in own[i]]))
        if config.tgc_negatives == "own":
            seen = [n[i, k] for k in own[i]]
        else:
            columns = [i + m * N for m in range(K)]  # of negatives laid out at i·K+k
            seen = [n[c // K, c % K] for c in columns if mask[c // K, c % K]]
        tau = config.tgc_scale
        tgc_i.append(minus_log_softmax(tau * t[i] @ t_hat[i], [tau * t[i] @ x for x in seen]))
        distill_i.append(
            np.sum((v[i] - v_hat[i]) ** 2)
            + np.sum((t[i] - t_hat[i]) ** 2)
            + sum(np.sum((n[i, k] - n_hat[i, k]) ** 2) for k in own[i])
        )
    terms = {
        "base": 0.5 * (np.mean(image_to_text) + np.mean(text_to_image)),
        "igc": np.mean(igc_i),
        "tgc": np.mean(tgc_i),
        "distill": np.sum(distill_i) if config.distill_reduction == "sum" else np.mean(distill_i),
    }
    terms["loss"] = (
        terms["base"]
        + config.lambda_igc * terms["igc"]
        + config.lambda_tgc * terms["tgc"]
        + config.lambda_distill * terms["distill"]
    )
    return {name: float(value) for name, value in terms.items()}


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    n=st.integers(1, 7),
    k=st.integers(0, 5),
    d=st.integers(2, 9),
    s=st.floats(1.0, 100.0),
    tgc_negatives=st.sampled_from(["own", "released"]),
    distill_reduction=st.sampled_from(["mean", "sum"]),
)
def test_losses_any_shape_and_mask_equal_numpy_reference(seed, n, k, d, s, tgc_negatives, distill_reduction):
    config = ObjectiveConfig(
        lambda_igc=0.3, lambda_tgc=0.7, tgc_negatives=tgc_negatives, distill_reduction=distill_reduction
    )
    arrays = random_arrays(seed, n, k, d)
    found = losses(features_of(arrays), torch.tensor(s), config)
    expected = reference(arrays, s, config)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value, rel=2e-5, abs=1e-4), name


def test_igc_and_tgc_without_a_valid_negative_are_zero():
    arrays = random_arrays(0, 3, 4, 8)
    arrays["neg_mask_BK"][:] = False
    terms = losses(features_of(arrays), torch.tensor(50.0), ObjectiveConfig())
    assert terms["igc"].item() == 0.0
    assert terms["tgc"].item() == 0.0


def test_losses_one_sample_without_negatives_leaves_only_distillation():
    arrays = random_arrays(1, 1, 0, 8)
    terms = losses(features_of(arrays), torch.tensor(50.0), ObjectiveConfig())
    assert terms["base"].item() == pytest.approx(0.0, abs=1e-6)
    assert terms["loss"].item() == pytest.approx(1.28 * terms["distill"].item(), rel=1e-6)
    assert terms["distill"].item() > 0


def test_losses_content_of_a_masked_negative_changes_neither_value_nor_gradient():
    def run(filler: float) -> tuple[float, list[torch.Tensor]]:
        arrays = random_arrays(2, 4, 3, 8)
        absent = ~arrays["neg_mask_BK"]
        assert absent.any()
        assert not absent.all()
        arrays["neg_BKD"][absent] = filler
        arrays["teacher_neg_BKD"][absent] = filler
        leaves = [torch.from_numpy(arrays[n]).requires_grad_() for n in STUDENT]
        scale = torch.tensor(20.0, requires_grad=True)
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        tensors |= dict(zip(STUDENT, leaves, strict=True))
        loss = losses(Features(**tensors), scale, ObjectiveConfig(tgc_negatives="released"))["loss"]
        return loss.item(), list(torch.autograd.grad(loss, [*leaves, scale]))

    loss_zero, grads_zero = run(0.0)
    loss_nan, grads_nan = run(math.nan)
    assert loss_zero == loss_nan
    for zero, nan in zip(grads_zero, grads_nan, strict=True):
        assert nan.isfinite().all()
        assert torch.equal(zero, nan)


def test_losses_gradients_equal_central_differences_of_the_reference():
    config = ObjectiveConfig(lambda_igc=0.5, lambda_tgc=0.5)
    arrays = random_arrays(3, 3, 2, 4)
    arrays["neg_mask_BK"][0] = False
    leaves = {
        name: torch.from_numpy(arrays[name]).requires_grad_() for name in ("img_BD", "txt_BD", "neg_BKD")
    }
    scale = torch.tensor(7.0, requires_grad=True)
    constants = {name: torch.from_numpy(array) for name, array in arrays.items() if name not in leaves}
    losses(Features(**leaves, **constants), scale, config)["loss"].backward()

    def slope(name: str, index: tuple[int, ...]) -> float:
        values = []
        for step in (1e-5, -1e-5):
            moved = {n: a.astype(np.float64) if a.dtype != bool else a for n, a in arrays.items()}
            moved[name] = moved[name].copy()
            moved[name][index] += step
            values.append(reference(moved, 7.0, config)["loss"])
        return (values[0] - values[1]) / 2e-5

    for name, leaf in leaves.items():
        for index in np.ndindex(*leaf.shape):
            assert leaf.grad[index].item() == pytest.approx(slope(name, index), rel=1e-3, abs=1e-4), (
                name,
                index,
            )
    up, down = (reference(arrays, 7.0 + step, config)["loss"] for step in (1e-5, -1e-5))
    assert scale.grad.item() == pytest.approx((up - down) / 2e-5, rel=1e-3)


def test_losses_published_distill_weight_sum_equals_mean_at_batch_256():
    arrays = random_arrays(4, 256, 4, 8)
    by_sum = losses(
        features_of(arrays),
        torch.tensor(10.0),
        ObjectiveConfig(lambda_distill=0.005, distill_reduction="sum"),
    )
    by_mean = losses(features_of(arrays), torch.tensor(10.0), ObjectiveConfig(lambda_distill=1.28))
    assert by_sum["loss"].item() == pytest.approx(by_mean["loss"].item(), rel=1e-6)
    assert by_sum["distill"].item() == pytest.approx(256 * by_mean["distill"].item(), rel=1e-6)


def test_tgc_released_at_batch_256_opens_own_negatives_in_4_of_1024_pairs():
    N, K, D = 256, 4, 8
    arrays = random_arrays(5, N, K, D)
    arrays["neg_mask_BK"][:] = True
    arrays["neg_BKD"] = arrays["neg_BKD"].copy()
    features = features_of(arrays)
    leaf = features.neg_BKD.clone().requires_grad_()
    tensors = {name: getattr(features, name) for name in arrays} | {"neg_BKD": leaf}
    # Row i alone: its gradient is nonzero exactly at the negatives it sees.
    own = 0
    for i in range(N):
        rows = {name: value[i : i + 1] for name, value in tensors.items()}
        batch = gather(Features(**tensors))
        alone = type(batch)(**{**batch.__dict__, "own_B": torch.tensor([i])})
        (grad,) = torch.autograd.grad(tgc(Features(**rows), alone, 10.0, "released"), leaf)
        seen = {(int(a), int(b)) for a, b in grad.abs().sum(-1).nonzero()}
        assert len(seen) == K
        own += sum(sample == i for sample, _ in seen)
    assert own == 4


def test_losses_bfloat16_autocast_computes_in_float32():
    arrays = random_arrays(6, 5, 3, 16)
    plain = losses(features_of(arrays), torch.tensor(30.0), ObjectiveConfig())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = losses(features_of(arrays), torch.tensor(30.0), ObjectiveConfig())
    for name, value in plain.items():
        assert cast[name].dtype == torch.float32
        assert cast[name].item() == value.item()


def test_losses_clip_ignores_negatives_and_equals_degla_base_without_them():
    arrays = random_arrays(7, 6, 3, 8)
    clip = losses(features_of(arrays), torch.tensor(10.0), ObjectiveConfig(name="clip"))
    bare = {name: torch.from_numpy(arrays[name]) for name in ("img_BD", "txt_BD")}
    no_teacher = ObjectiveConfig(lambda_tgc=0.0, lambda_distill=0.0)
    degla = losses(Features(**bare), torch.tensor(10.0), no_teacher)
    arrays["neg_mask_BK"][:] = False
    assert clip["loss"].item() == degla["loss"].item()
    assert clip["loss"].item() == pytest.approx(reference(arrays, 10.0, no_teacher)["base"], rel=1e-5)


def test_losses_degla_without_teacher_raises():
    arrays = random_arrays(8, 2, 1, 4)
    student = {
        name: torch.from_numpy(arrays[name]) for name in ("img_BD", "txt_BD", "neg_BKD", "neg_mask_BK")
    }
    with pytest.raises(ValueError, match="teacher"):
        losses(Features(**student), torch.tensor(10.0), ObjectiveConfig())
