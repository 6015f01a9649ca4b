"""Old names of settings, which are accepted; settings and values that are refused, with their successor."""

RENAMED = {
    "objective.tgc_temperature": "objective.tgc_scale",
    "adapt.lora_rate": "adapt.lora_lr_multiplier",
    "use_gpu": "compute.use_gpu",
    "precision": "compute.precision",
    "cpus_per_worker": "compute.cpus",
    "cpus_per_actor": "compute.cpus",
    "evaluation_actors": "num_actors",
}
"""Old dotted name -> new one, in any job and any section that has the new one and not the old."""

OVERLAYS = {
    f"degla_{name}": f"jobs/configs/ablations/{name}.yaml"
    for name in ("no_igc", "no_tgc", "no_distill", "frozen_teacher", "released")
}
"""Old values of `objective.name` -> file with the same settings."""

REPLACED = {
    "accumulation_steps": "micro_batch_size, the rows that a worker computes at once: "
    "global_batch_size / num_workers / accumulation_steps",
    "max_zero_shot_loss": "keep, such as 'zero_shot >= base - 2' for 0.02",
}
"""Settings whose successor takes another value -> the successor, and how its value follows."""
