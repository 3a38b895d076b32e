"""Training on a handful of tiny images: reproducible, resumable, and it learns."""

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from patchguard.attacks.pgd import NFGSM, PGD
from patchguard.config import (
    Axis,
    DataConfig,
    InnerAttackConfig,
    TrainingConfig,
    VariationConfig,
    load_recipe,
)
from patchguard.data.windows import WHOLE_PLACE
from patchguard.errors import Interrupted, PatchGuardError
from patchguard.models.patchguard import PatchGuard, Placed
from patchguard.report.contents import training_curves
from patchguard.stopping import signals_stop
from patchguard.training import module as training_module
from patchguard.training import resume
from patchguard.training.batches import (
    Batch,
    Draw,
    StepSampler,
    TrainingImages,
    training_loader,
    workers_for,
)
from patchguard.training.loss import PatchLoss, training_loss
from patchguard.training.module import (
    AdversarialTraining,
    LoggedQuantities,
    images_of,
    inner_attack,
    places_of,
)
from patchguard.training.resume import ResumeFile, read_state
from patchguard.training.train import total_steps, train
from trainings import MODEL, VARIED, dataset, settings


def saved_step(path: Path) -> int:
    state = read_state(path)
    return state["training"]["step"] if state else 0


def trained(data: TrainingImages, config: TrainingConfig, seed: int, folder: Path) -> PatchGuard:
    return train(data, MODEL, config, seed=seed, folder=folder).detector


def squeezed_to_32(
    images: np.ndarray, foregrounds: np.ndarray, config: DataConfig
) -> TrainingImages:
    return TrainingImages(images, foregrounds, config, 0, window=32, views=["whole"])


def halfway(_step: int) -> float:
    """A progress of no matter to the test."""
    return 0.5


def weights(model: PatchGuard) -> list[Tensor]:
    return [parameter.detach() for parameter in model.parameters()]


def equal(first: PatchGuard, second: PatchGuard) -> bool:
    return all(map(torch.equal, weights(first), weights(second)))


def test_the_detector_has_the_moving_average_of_the_weights() -> None:
    module = AdversarialTraining(PatchGuard(MODEL), settings(ema=0.9), 6, 0, images=6)
    for step, value in enumerate((1.0, 2.0, 3.0)):
        module.step = step
        with torch.no_grad():
            for weight in module.model.parameters():
                weight.fill_(value)
        module.update_average()
    # 1, then 0.9 · 1 + 0.1 · 2, then 0.9 · 1.1 + 0.1 · 3.
    for parameter in weights(module.detector):
        torch.testing.assert_close(parameter, torch.full_like(parameter, 1.29))


def test_only_what_is_logged_is_measured_and_so_waits_for_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, measuring = AdversarialTraining.forward, []

    def forward(self: AdversarialTraining, batch: Batch) -> tuple[Tensor, LoggedQuantities]:
        loss, measured = original(self, batch)
        if measured:
            measuring.append(self.step)
        return loss, measured

    monkeypatch.setattr(AdversarialTraining, "forward", forward)
    train(dataset(), MODEL, settings(steps=40), seed=0, folder=tmp_path)
    assert measuring == [9, 19, 29, 39]
    assert training_curves(tmp_path / "csv")["loss"][:, 0].tolist() == measuring


def test_weights_cast_to_half_precision_are_not_kept_while_they_are_perturbed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, kept = AdversarialTraining.forward, []

    def forward(self: AdversarialTraining, batch: Batch) -> tuple[Tensor, LoggedQuantities]:
        kept.append((torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()))
        return original(self, batch)

    monkeypatch.setattr(AdversarialTraining, "forward", forward)
    config = settings(steps=2, precision="bf16", awp=0.01)
    train(dataset(), MODEL, config, seed=0, folder=tmp_path)
    assert kept == [(True, False)] * 2


def test_a_gpu_has_more_workers_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, free = DataConfig(workers=3), DataConfig()
    found = {}
    for kind, cores in (("cpu", 64), ("cuda", 2), ("cuda", 6), ("cuda", 64)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=cores: range(n), False)
        assert workers_for(asked, torch.device(kind)) == 3
        found[kind, cores] = workers_for(free, torch.device(kind))
    assert found == {("cpu", 64): 1, ("cuda", 2): 1, ("cuda", 6): 5, ("cuda", 64): 8}


def test_batches_do_not_depend_on_the_number_of_workers() -> None:
    for number, (first, second) in enumerate(
        zip(
            training_loader(dataset(workers=0, variation=VARIED), 4, halfway),
            training_loader(dataset(workers=2, variation=VARIED), 4, halfway),
            strict=False,
        )
    ):
        assert first["normal"].shape == (4, 3, 32, 32)
        assert all(torch.equal(first[key], second[key]) for key in first)
        if number == 3:
            break


def test_two_processes_draw_exactly_the_batches_that_one_would() -> None:
    alone, *shares = (
        training_loader(dataset(), 4, halfway, first_step=1, rank=rank, world_size=processes)
        for processes, rank in ((1, 0), (2, 0), (2, 1))
    )
    for number, (whole, *parts) in enumerate(zip(alone, *shares, strict=False)):
        assert [len(part["index"]) for part in parts] == [2, 2]
        for key in whole:
            drawn = torch.stack([part[key] for part in parts], 1).flatten(0, 1)
            assert torch.equal(drawn, whole[key])
        if number == 3:
            break


def test_a_batch_that_processes_cannot_share_equally_is_refused() -> None:
    with pytest.raises(PatchGuardError, match=r"batch_size is 5; 2 processes need a multiple of 2"):
        StepSampler(6, 5, 0, halfway, world_size=2)


def test_images_are_varied_before_anything_is_pasted_into_them() -> None:
    rng = np.random.default_rng(0)
    images = rng.random((3, 32, 32, 3), dtype=np.float32)
    foregrounds = np.stack([np.hypot(*(np.mgrid[:32, :32] - 12)) < 8] * 3)
    config = DataConfig(flips=[], variation=VARIED)
    varied = squeezed_to_32(images, foregrounds, config)
    item, again, other = varied[Draw(0, 1, 1.0)], varied[Draw(0, 1, 1.0)], varied[Draw(1, 1, 1.0)]
    assert torch.equal(item["normal"], again["normal"])
    assert not torch.equal(item["normal"], other["normal"])
    assert not np.array_equal(item["normal"].permute(1, 2, 0).numpy(), images[1])
    changed = (item["normal"] != item["anomalous"]).any(0)
    assert changed.any() and not (changed & ~item["mask"]).any()


@pytest.mark.parametrize(("axis", "number"), [("vertical", 0), ("horizontal", 1)])
def test_images_are_flipped_along_the_named_axis_only(axis: Axis, number: int) -> None:
    image = np.random.default_rng(0).random((32, 32, 3), dtype=np.float32)
    config = DataConfig(flips=[axis])
    items = squeezed_to_32(image[None], np.ones((1, 32, 32), dtype=bool), config)
    seen = set()
    for epoch in range(20):
        item = items[Draw(epoch, 0, 1.0)]
        flipped = bool(item["flips"][number])
        expected = np.flip(image, number) if flipped else image
        assert np.array_equal(item["normal"].permute(1, 2, 0).numpy(), expected)
        assert not item["flips"][1 - number]
        seen.add(flipped)
    assert seen == {False, True}


def test_patches_lie_on_the_moved_foreground() -> None:
    # The foreground is what is bright, so where it has moved to can be seen.
    bright = np.hypot(*(np.mgrid[:32, :32] - 12)) < 8
    image = np.where(bright[..., None], 0.8, 0.1).astype(np.float32).repeat(3, axis=2)
    moving = VariationConfig(shift=0.25)
    config = DataConfig(flips=[], variation=moving)
    items = squeezed_to_32(image[None], bright[None], config)
    for epoch in range(20):
        item = items[Draw(epoch, 0, 1.0)]
        near = torch.nn.functional.max_pool2d(item["normal"][None], 5, 1, 2)[0, 0] > 0.4
        assert not (item["mask"] & ~near).any()


def test_a_pseudo_anomaly_differs_from_its_normal_image_inside_the_mask_only() -> None:
    item = dataset()[Draw(0, 1, 0.5)]
    changed = (item["normal"] != item["anomalous"]).any(0)
    assert changed.any()
    assert not (changed & ~item["mask"]).any()


def test_every_epoch_visits_every_image_once_in_an_order_of_its_own() -> None:
    sampler = iter(StepSampler(6, 4, 0, halfway))
    visits = [visit for _ in range(3) for visit in next(sampler)]
    first, second = visits[:6], visits[6:]
    assert [sorted(draw.image for draw in epoch) for epoch in (first, second)] == [[*range(6)]] * 2
    assert {draw.epoch for draw in first} == {0}
    assert [draw.image for draw in first] != [draw.image for draw in second]


def test_a_sampler_that_starts_later_continues_the_same_sequence() -> None:
    whole, resumed = (
        iter(StepSampler(6, 4, 0, halfway)),
        iter(StepSampler(6, 4, 0, halfway, first_step=2)),
    )
    for _ in range(2):
        next(whole)
    assert next(whole) == next(resumed)


def test_equal_seeds_reach_equal_weights_and_other_seeds_do_not(tmp_path: Path) -> None:
    first, second, other = (
        trained(dataset(seed=seed), settings(), seed, tmp_path / name)
        for seed, name in ((0, "a"), (0, "b"), (1, "c"))
    )
    assert equal(first, second)
    assert not equal(first, other)


@pytest.mark.parametrize(
    "changes",
    [
        {"attack": InnerAttackConfig()},
        {"attack": InnerAttackConfig(steps=2, project=True)},
        {"attack": InnerAttackConfig(persistent=True, project=True), "awp": 0.01},
        {"head_first": 0.7},
    ],
    ids=["single step", "pgd-2", "persistent", "head first"],
)
def test_an_interrupted_run_resumes_to_the_weights_of_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    config = settings(**changes)
    whole = trained(dataset(), config, 3, tmp_path / "whole")

    with monkeypatch.context() as patch:
        patch.setattr(AdversarialTraining, "forward", _interrupting_at(step=3))
        with signals_stop(), pytest.raises(Interrupted, match="--resume"):
            train(dataset(), MODEL, config, seed=3, folder=tmp_path / "part")
    assert saved_step(tmp_path / "part" / "resume.ckpt") == 4
    resumed = trained(dataset(), config, 3, tmp_path / "part")
    assert equal(whole, resumed)


@pytest.mark.parametrize("asked_at", [5, 6], ids=["in the last step", "after the last step"])
def test_a_stop_at_the_last_step_adds_no_step_to_the_resumed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked_at: int
) -> None:
    config = settings(attack=InnerAttackConfig())
    whole = train(dataset(), MODEL, config, seed=3, folder=tmp_path / "whole")

    with monkeypatch.context() as patch, signals_stop():
        if asked_at < 6:
            patch.setattr(AdversarialTraining, "forward", _interrupting_at(asked_at))
        else:
            patch.setattr(ResumeFile, "save", _then(lambda: signal.raise_signal(signal.SIGINT)))
        with pytest.raises(Interrupted, match="step 6"):
            train(dataset(), MODEL, config, seed=3, folder=tmp_path / "part")
    resumed = train(dataset(), MODEL, config, seed=3, folder=tmp_path / "part")
    assert (resumed.steps, whole.steps) == (6, 6)
    assert equal(whole.detector, resumed.detector)


def test_a_process_killed_after_a_save_at_the_last_step_takes_no_step_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(attack=InnerAttackConfig())
    whole = trained(dataset(), config, 3, tmp_path / "whole")

    class Killed(Exception):
        pass

    def killed() -> None:
        if saved_step(tmp_path / "part" / "resume.ckpt") == 6:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(resume, "SAVE_EVERY_SECONDS", -1)
        patch.setattr(ResumeFile, "save", _then(killed))
        trained(dataset(), config, 3, tmp_path / "part")
    assert saved_step(tmp_path / "part" / "resume.ckpt") == 6
    resumed = train(dataset(), MODEL, config, seed=3, folder=tmp_path / "part")
    assert resumed.steps == 6
    assert equal(whole, resumed.detector)


@pytest.mark.parametrize("where", ["begin_step", "forward"])
@pytest.mark.parametrize("awp", [0.0, 0.01])
def test_a_keyboard_interrupt_without_handlers_saves_what_was_before_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, awp: float
) -> None:
    config = settings(attack=InnerAttackConfig(), awp=awp)
    whole = trained(dataset(), config, 3, tmp_path / "whole")
    original = getattr(AdversarialTraining, where)

    def interrupted(self: AdversarialTraining, *arguments: Any) -> Any:
        done = original(self, *arguments)
        if self.step == 3:
            raise KeyboardInterrupt
        return done

    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="step 3"):
        patch.setattr(AdversarialTraining, where, interrupted)
        trained(dataset(), config, 3, tmp_path / "part")
    assert saved_step(tmp_path / "part" / "resume.ckpt") == 3
    assert equal(whole, trained(dataset(), config, 3, tmp_path / "part"))


def test_training_needs_neither_the_main_thread_nor_handlers_of_signals(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(trained, dataset(workers=1), settings(), 0, tmp_path / "thread")
        elsewhere = done.result()
    assert equal(elsewhere, trained(dataset(), settings(), 0, tmp_path / "main"))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_request_to_stop_reaches_a_training_in_another_thread(tmp_path: Path) -> None:
    with signals_stop(), ThreadPoolExecutor(1) as pool:
        done = pool.submit(trained, dataset(), settings(steps=10_000), 0, tmp_path)
        while not list(tmp_path.glob("csv/*/metrics.csv")):
            time.sleep(0.05)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted):
            done.result(timeout=60)
    assert 0 < saved_step(tmp_path / "resume.ckpt") < 10_000


def _interrupting_at(step: int) -> Callable[..., tuple[Tensor, LoggedQuantities]]:
    original = AdversarialTraining.forward

    def forward(self: AdversarialTraining, batch: Batch) -> tuple[Tensor, LoggedQuantities]:
        if self.step == step:
            signal.raise_signal(signal.SIGINT)
        return original(self, batch)

    return forward


def _then(follows: Callable[[], None]) -> Callable[[ResumeFile], None]:
    """Saves, and then that."""
    original = ResumeFile.save

    def save(self: ResumeFile) -> None:
        original(self)
        follows()

    return save


def test_a_batch_knows_how_far_the_training_is() -> None:
    sampler = iter(StepSampler(6, 4, 0, lambda step: step / 10, first_step=3))
    assert [{draw.progress for draw in next(sampler)} for _ in range(3)] == [{0.3}, {0.4}, {0.5}]


@pytest.mark.parametrize(("step", "eps"), [(0, 0), (20, 2), (40, 4), (80, 8), (90, 8)])
def test_eps_grows_then_stays(step: int, eps: float, monkeypatch: Any) -> None:
    attack = InnerAttackConfig(ramp=0.8)
    module = AdversarialTraining(PatchGuard(MODEL), settings(attack=attack), 100, 0, images=6)
    monkeypatch.setattr(module, "progress", lambda: step / 100)
    assert 255 * module.current_eps() == pytest.approx(eps)


def test_without_a_ramp_eps_is_there_from_the_start() -> None:
    attack = InnerAttackConfig(ramp=0.0)
    module = AdversarialTraining(PatchGuard(MODEL), settings(attack=attack), 100, 0, images=6)
    assert 255 * module.current_eps() == pytest.approx(8)


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = trained(dataset(), settings(), 0, tmp_path)
    again = trained(dataset(), settings(), 0, tmp_path)
    assert equal(first, again)


def test_a_damaged_resume_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "resume.ckpt").write_bytes(b"not a checkpoint")
    with pytest.raises(PatchGuardError, match=r"resume\.ckpt is damaged"):
        train(dataset(), MODEL, settings(), seed=0, folder=tmp_path)


def test_a_resume_file_of_another_version_is_refused_in_one_line(tmp_path: Path) -> None:
    old = {"global_step": 3, "pytorch-lightning_version": "2.6.0", "state_dict": {}}
    torch.save(old, tmp_path / "resume.ckpt")
    with pytest.raises(PatchGuardError, match=r"resume\.ckpt is of another version of patchguard"):
        train(dataset(), MODEL, settings(), seed=0, folder=tmp_path)


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = settings(steps=60, ema=0.0, attack=InnerAttackConfig(eps="2/255"))
    data = dataset()
    after = trained(data, config, 0, tmp_path)
    batch = next(iter(training_loader(data, 16, halfway, first_step=100)))

    images, _, masks = images_of(batch)

    def loss(model: PatchGuard) -> float:
        with torch.no_grad():
            logits = model.eval().window_logits(images, places_of(batch)).logits
        return float(PatchLoss(1.0).of_logits(logits, masks).mean())

    assert loss(after) < loss(PatchGuard(MODEL))


def test_minutes_end_the_training_and_drive_the_schedule(tmp_path: Path) -> None:
    config = settings(steps=None, minutes=0.02)
    train(dataset(), MODEL, config, seed=0, folder=tmp_path)
    assert saved_step(tmp_path / "resume.ckpt") > 0


def test_the_length_is_given_once() -> None:
    assert total_steps(settings(steps=None, epochs=10), images=6) == 15
    assert total_steps(settings(steps=None, minutes=1), images=6) is None
    for wrong in (settings(steps=None), settings(minutes=1)):
        with pytest.raises(PatchGuardError, match="one of"):
            total_steps(wrong, images=6)


def test_eps_ramps_up_and_the_learning_rate_decays(monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(attack=InnerAttackConfig(eps="8/255", ramp=0.5))
    module = AdversarialTraining(PatchGuard(MODEL), config, 100, seed=0, images=6)

    def at(progress: float) -> tuple[float, float]:
        monkeypatch.setattr(module, "progress", lambda: progress)
        return 255 * module.current_eps(), module.current_lr() / config.lr

    assert at(0.0) == pytest.approx((0.0, 1.0))
    assert at(0.25) == pytest.approx((4.0, 0.0125 + 0.9875 * 0.853553), abs=1e-5)
    assert at(1.0) == pytest.approx((8.0, 0.0125))


def test_recipes_choose_the_attack() -> None:
    assert type(inner_attack(PatchLoss(1.0), InnerAttackConfig(project=True))) is PGD
    assert type(inner_attack(PatchLoss(1.0), InnerAttackConfig(project=False))) is NFGSM


def test_the_patch_loss_is_a_weighted_sum_over_patches() -> None:
    logits, masks = torch.zeros(1, 2, 2), torch.zeros(1, 32, 32)
    assert PatchLoss(5.0).of_logits(logits, masks).item() == pytest.approx(4 * np.log(2))
    masks[0, :16, :16] = 1
    assert PatchLoss(5.0).of_logits(logits, masks).item() == pytest.approx(8 * np.log(2))


def test_patches_that_an_anomaly_only_grazes_are_left_out() -> None:
    logits, masks = torch.zeros(1, 2, 2), torch.zeros(1, 32, 32)
    masks[0, :16, :16] = 1
    masks[0, 16:, 0] = 1  # a sixteenth of the third patch
    assert PatchLoss(5.0).of_logits(logits, masks).item() == pytest.approx(12 * np.log(2))
    kept = PatchLoss(5.0, 1 / 16).of_logits(logits, masks)
    assert kept.item() == pytest.approx(12 * np.log(2))
    left_out = PatchLoss(5.0, 0.07).of_logits(logits, masks)
    assert left_out.item() == pytest.approx(7 * np.log(2))


def test_the_backbone_rests_while_only_the_head_learns(tmp_path: Path) -> None:
    torch.manual_seed(0)
    begun = PatchGuard(MODEL).backbone.state_dict()
    resting = trained(dataset(), settings(head_first=0.99, ema=0.0), 0, tmp_path / "a")
    assert all(torch.equal(begun[name], now) for name, now in resting.backbone.state_dict().items())
    learning = trained(dataset(), settings(head_first=0.5, ema=0.0), 0, tmp_path / "b")
    moved = learning.backbone.state_dict()
    assert not all(torch.equal(begun[name], now) for name, now in moved.items())
    assert not torch.equal(resting.discriminator.position, learning.discriminator.position)


def test_weights_are_back_before_the_step_that_follows_their_perturbation(tmp_path: Path) -> None:
    torch.manual_seed(0)
    begun = PatchGuard(MODEL)
    config = settings(awp=0.5, ema=0.0, lr=1e-30, attack=InnerAttackConfig(ramp=0.0))
    still = trained(dataset(), config, 0, tmp_path / "still")
    for before, after in zip(weights(begun), weights(still), strict=True):
        torch.testing.assert_close(after, before, atol=1e-20, rtol=0)
    moved = [
        trained(dataset(), replace(config, lr=1e-3, awp=awp), 0, tmp_path / str(awp))
        for awp in (0.0, 0.5)
    ]
    assert not equal(*moved)


def test_without_an_attack_there_is_no_perturbation_of_weights(tmp_path: Path) -> None:
    config = settings(awp=0.5, attack=InnerAttackConfig(eps="0/255"))
    assert trained(dataset(), config, 0, tmp_path)


def test_what_an_attack_did_to_a_normal_image_is_where_the_next_one_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attack = InnerAttackConfig(ramp=0.0, project=True, persistent=True, step_size=0.01)
    module = AdversarialTraining(PatchGuard(MODEL), settings(attack=attack), 9, 0, images=6)
    monkeypatch.setattr(module, "progress", lambda: 0.5)
    assert module.perturbations is not None
    batch = next(iter(training_loader(dataset(), 4, halfway)))
    images, labels, masks = images_of(batch)
    placed = Placed(module.model, places_of(batch))
    first = module.attacked(placed, batch, images, labels, masks)
    assert set(module.perturbations.known.nonzero().flatten().tolist()) == set(
        batch["index"].tolist()
    )
    moved = 255 / 8 * (module.attacked(placed, batch, images, labels, masks) - first).abs()
    assert moved[:4].max() < 0.02
    assert moved[4:].mean() > 0.2


def test_persistent_perturbations_stay_in_the_ball() -> None:
    with pytest.raises(PatchGuardError, match=r"attack\.project"):
        InnerAttackConfig(persistent=True, project=False)


def test_the_attention_degree_of_every_block_is_logged_once_in_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_module, "RARELY", 2)
    train(dataset(), MODEL, settings(), seed=0, folder=tmp_path)
    logged = training_curves(tmp_path / "csv")
    for block in range(1, 4):
        points = logged[f"attention_degree_{block}"]
        assert points[:, 0].tolist() == [1, 3, 5]
        assert ((points[:, 1] >= 1) & (points[:, 1] <= 4)).all()


def test_the_attention_term_is_weighted_by_block_and_reaches_the_weights() -> None:
    model = PatchGuard(MODEL).train()
    placed = Placed(model, torch.tensor([WHOLE_PLACE] * 2))
    images, masks = torch.rand(2, 3, 32, 32), torch.zeros(2, 32, 32)

    def term(weights: dict[int, float]) -> Tensor:
        return training_loss(placed, images, masks, PatchLoss(1.0), weights)[1]

    assert term({}) == 0
    model.eval()
    once, both, last = term({2: 1.0}), term({2: 1.0, 3: 3.0}), term({3: 3.0})
    torch.testing.assert_close(both, once + last)
    (gradient,) = torch.autograd.grad(once, model.blocks[1].attn.qkv.weight)  # type: ignore[union-attr, arg-type]
    assert gradient.abs().sum() > 0


def test_a_block_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(PatchGuardError, match=r"block 9; patchguard_mini has blocks 1 to 3"):
        train(dataset(), MODEL, settings(attention={9: 1.0}), seed=0, folder=tmp_path)


@pytest.mark.parametrize(
    ("name", "size"),
    [("fast", 32), ("clean", 32), ("pretrain", 32), ("strong", 32), ("paper", 28)],
)
def test_every_recipe_trains(tmp_path: Path, name: str, size: int) -> None:
    recipe = load_recipe(name)
    recipe.data.workers, recipe.model.window = 0, size
    images = np.full((4, size, size, 3), 0.5, np.float32)
    foregrounds = np.ones((4, size, size), dtype=bool)
    data = TrainingImages(
        images, foregrounds, recipe.data, 0, window=size, views=recipe.model.views
    )
    config = replace(recipe.training, steps=2, epochs=None, minutes=None, batch_size=2)
    done = train(data, recipe.model, config, seed=0, folder=tmp_path)
    assert done.seconds > 0
    assert torch.isfinite(done.detector(torch.rand(1, 3, size, size)).score).all()


@pytest.mark.parametrize(
    ("kind", "setting", "named"),
    [
        (TrainingConfig, {"lr": -1.0}, r"training\.lr is -1\.0"),
        (TrainingConfig, {"lr": float("inf")}, r"training\.lr is inf"),
        (TrainingConfig, {"epochs": float("inf")}, r"training\.epochs is inf"),
        (TrainingConfig, {"awp": float("nan")}, r"training\.awp is nan"),
        (TrainingConfig, {"lr_final": 7.0}, r"training\.lr_final is 7\.0"),
        (TrainingConfig, {"attention": {2: -1.0}}, r"training\.attention is \{2: -1\.0\}"),
        (TrainingConfig, {"gradient_clip": -1.0}, r"training\.gradient_clip is -1\.0"),
        (TrainingConfig, {"weight_decay": -1.0}, r"training\.weight_decay is -1\.0"),
        (TrainingConfig, {"anomalous_weight": -1.0}, r"training\.anomalous_weight is -1\.0"),
        (InnerAttackConfig, {"step_size": 0.0}, r"training\.attack\.step_size is 0\.0"),
        (InnerAttackConfig, {"persistent": True}, r"training\.attack\.project is False"),
    ],
)
def test_settings_out_of_range_are_named(kind: type, setting: dict[str, Any], named: str) -> None:
    with pytest.raises(PatchGuardError, match=named):
        kind(**setting)
