"""Numbers that cannot be are refused before anything runs, each with what was expected."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from dataclasses import fields, is_dataclass, replace
from typing import get_args, get_type_hints

import pytest

from da_leukemia.adaptation.settings import COMPONENTS, Method
from da_leukemia.bounds import Bounds
from da_leukemia.config import Data, Domain, Experiment, complete, load_experiment, shipped
from da_leukemia.config.check import check_method, ranges
from da_leukemia.config.files import load_method, load_published
from da_leukemia.errors import ConfigError

SMALL = "data: {domains: {scope: {}, phone: {}}}\nmethods: [mine]\nadaptations: {mine: }\n"


def problems(folder, *overrides: str) -> list[str]:
    path = folder / "trial.yaml"
    path.write_text(SMALL)
    with pytest.raises(ConfigError) as caught:
        load_experiment(path, overrides)
    blamed = re.compile(rf"command line: |{re.escape(str(path))}: ")
    return [blamed.sub("", p, count=1) for p in caught.value.problems]


def of_components(*components: str) -> str:
    return f"adaptations.mine.components=[{', '.join(components)}]"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("trainer.ema=2", "expected a number from 0 to 1, got 2"),
        ("trainer.warmup=-1", "expected a number from 0 to 1, got -1"),
        ("trainer.warmup=30", "expected a number from 0 to 1, got 30; did you mean 0.3?"),
        ("trainer.weight_decay=-1", "expected a number from 0 to 10, got -1"),
        ("trainer.clip=-1", "expected at least 0, got -1"),
        ("trainer.clip=.inf", "expected at least 0, got inf, which is no finite number"),
        ("trainer.validate_every=-1", "expected at least 0, got -1"),
        ("trainer.workers=-1", "expected at least 0, got -1"),
        ("trainer.batch_size=0", "expected at least 1, got 0"),
        ("trainer.learning_rate=-1", "expected a number above 0 and up to 10, got -1"),
        ("trainer.learning_rate=0", "expected a number above 0 and up to 10, got 0"),
        (
            "trainer.learning_rate=.nan",
            "expected a number above 0 and up to 10, got nan, which is no finite number",
        ),
        ("augmentation.flip=3", "expected a number from 0 to 1, got 3"),
        ("augmentation.brightness=-2", "expected a number from 0 to 1, got -2"),
        ("augmentation.translate=9", "expected a number from 0 to 1, got 9; did you mean 0.09?"),
        ("augmentation.hue=3", "expected a number from 0 to 0.5, got 3"),
        ("augmentation.noise=-1", "expected a number from 0 to 1, got -1"),
        ("augmentation.blur_sigma=-1", "expected a number from 0 to 20, got -1"),
        ("augmentation.scale=[2,1]", "expected [smallest, largest], got [2.0, 1.0]"),
        ("augmentation.scale=[2]", "expected [smallest, largest], got [2.0]"),
        ("detector.depth=-1", "expected at least 0, got -1"),
        ("detector.channels=0", "expected at least 1, got 0"),
        (
            "detector.channels=97",
            "expected a multiple of 8, the groups of its GroupNorm, got 97",
        ),
        ("detector.max_detections=0", "expected at least 1, got 0"),
        ("detector.nms_iou=7", "expected a number from 0 to 1, got 7; did you mean 0.07?"),
        ("detector.score_threshold=-5", "expected a number from 0 to 1, got -5"),
        ("detector.attribute_gradient=2", "expected a number from 0 to 1, got 2"),
        ("detector.two_stage.hidden=0", "expected at least 1, got 0"),
        ("detector.classifier.beta=1", "expected a number from 0 to below 1, got 1"),
        ("data.memory_cache_gb=-1", "expected at least 0, got -1"),
        ("data.image_size=0", "expected at least 8, got 0"),
        ("data.image_size=100", "100 is no multiple of the largest stride 32"),
        ("data.split.test=1", "expected a number above 0 and below 1, got 1"),
        ("data.simulate.patients=-1", "expected at least 0, got -1"),
        ("data.calibration.view_um=0", "expected a length in um above 0, got 0"),
        ("data.calibration.jitter=[2,1]", "expected [smallest, largest], got [2.0, 1.0]"),
        (
            "data.sparse.area=20",
            "expected a share of the area above 0 and up to 1, got 20; did you mean 0.2?",
        ),
        (
            "data.domains.scope.crop=15",
            "expected a margin as a share of the box from 0 to 2, got 15; did you mean 0.15?",
        ),
        ("selection.images=0", "expected at least 1, got 0"),
        ("slurm.gpus=2", "expected a whole number from 0 to 1, got 2"),
        ("slurm.warning_seconds=14400", "expected less than slurm.minutes, got 14400 of 14400"),
        ("ray.cpus=-1", "expected at least 0, got -1"),
        ("processes=0", "expected at least 1, got 0"),
        ("adaptations.mine.target_share=1", "expected a number above 0 and below 1, got 1"),
        ("adaptations.mine.patch_mosaics=2", "expected a number from 0 to 1, got 2"),
    ],
)
def test_a_setting_out_of_range_is_named(tmp_path, override, said):
    key = override.partition("=")[0]
    assert problems(tmp_path, override) == [f"{key}: {said}"]


def test_each_number_of_a_list_is_named(tmp_path):
    assert sorted(problems(tmp_path, "seeds=[0,-1]", "augmentation.scale=[0,1]")) == [
        "augmentation.scale[0]: expected a number above 0, got 0",
        "seeds[1]: expected a whole number from 0 to 4294967295, got -1",
    ]


@pytest.mark.parametrize(
    ("component", "key", "said"),
    [
        ("{name: adversarial, weight: -1}", "weight", "expected at least 0, got -1"),
        ("{name: adversarial, ramp: 7}", "ramp", "from 0 to 1, got 7; did you mean 0.07?"),
        ("{name: adversarial, ramp: -1}", "ramp", "expected a number from 0 to 1, got -1"),
        ("{name: adversarial, kernel: 2}", "kernel", "expected an odd number, got 2"),
        ("{name: adversarial, weight: '0.5'}", "weight", "got the text '0.5'; write 0.5"),
        ("{name: instance_adversarial, resolution: 0}", "resolution", "at least 1, got 0"),
        ("{name: mmd, regions: 0}", "regions", "expected at least 1, got 0"),
        ("{name: coral, weight: .inf}", "weight", "got inf, which is no finite number"),
        ("{name: prototypes, temperature: 0}", "temperature", "a number above 0, got 0"),
        ("{name: fourier, probability: 3}", "probability", "a number from 0 to 1, got 3"),
        ("{name: fourier, beta_min: 0.2}", "beta_min", "at most beta_max, which is 0.05, got 0.2"),
        ("{name: histogram, blend_min: 2}", "blend_min", "a number from 0 to 1, got 2"),
        ("{name: reinhard, probability: -1}", "probability", "a number from 0 to 1, got -1"),
        ("{name: stain_jitter, spread: 20}", "spread", "did you mean 0.2?"),
        ("{name: mixstyle, alpha: 0}", "alpha", "a number above 0 and up to 1, got 0"),
        ("{name: mean_teacher, threshold: 2}", "threshold", "a number from 0 to 1, got 2"),
        ("{name: mean_teacher, threshold: -1}", "threshold", "a number from 0 to 1, got -1"),
        ("{name: mean_teacher, burn_in: 2}", "burn_in", "a number from 0 to below 1, got 2"),
        ("{name: mean_teacher, low: 0.9}", "low", "at most high, which is 0.45, got 0.9"),
        ("{name: distillation, class_weight: .nan}", "class_weight", "got nan"),
        ("{name: cut_paste, cells: 0}", "cells", "expected at least 1, got 0"),
        ("{name: masking, ratio: 1.5}", "ratio", "a number from 0 to 1, got 1.5"),
        ("{name: masked_consistency, block: 0}", "block", "expected at least 1, got 0"),
        (
            "{name: confmix, threshold: .1, negative: .5}",
            "negative",
            "expected at most threshold, which is 0.1, got 0.5",
        ),
        ("{name: daca, burn_in: 30}", "burn_in", "to below 1, got 30; did you mean 0.3?"),
        ("{name: adabn, weight: 2}", "weight", "a number from 0 to 1, got 2"),
        ("{name: tent, steps: -3}", "steps", "expected at least 1, got -3"),
        ("{name: tent, learning_rate: 1e9}", "learning_rate", "from 0 to 10, got 1000000000"),
        ("{name: patch_crops, until: 2}", "until", "a number from 0 to 1, got 2"),
        ("{name: sparse_teacher, overlap: 2}", "overlap", "a number from 0 to 1, got 2"),
        ("{name: sparse_similarity, margin: 3}", "margin", "a number from -1 to 1, got 3"),
        ("{name: sparse_similarity, until: 0.1}", "burn_in", "at most until, which is 0.1"),
    ],
)
def test_a_component_out_of_range_is_named(tmp_path, component, key, said):
    (found,) = problems(tmp_path, of_components(component))
    assert found.startswith(f"adaptations.mine.components[0].{key}: expected")
    assert said in found


def test_masking_needs_a_teacher(tmp_path):
    (found,) = problems(tmp_path, of_components("{name: masking}"))
    assert found == (
        "adaptations.mine: masking hides parts of what a teacher's student sees; put mean_teacher "
        "or distillation beside it"
    )
    for others in (["{name: mean_teacher, weight: 0}"], ["{name: adversarial}"]):
        (found,) = problems(tmp_path, of_components("{name: masking}", *others))
        assert "put mean_teacher" in found
    path = tmp_path / "trial.yaml"
    for components in (
        ["{name: masking}", "{name: distillation}"],
        ["{name: masking, ratio: 0}"],
        ["{name: adversarial}", "{name: adversarial, centre_aware: true}"],
    ):
        load_experiment(path, [of_components(*components)])


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("target_images: 0", "expected a number above 0 and up to 1, got 0"),
        ("target_images: 2", "expected a number above 0 and up to 1, got 2"),
        ("target_images: .5, components: [{name: confmix}]", "expected 1: confmix makes one pict"),
        ("target_images: .5, source_free: true, components: [{name: mean_teacher, burn_in: 0}]",
         "a source_free method sees no other images; set trainer.batch_size"),
    ],
)  # fmt: skip
def test_fewer_images_of_the_target_are_refused_where_they_mean_nothing(tmp_path, method, said):
    (found,) = problems(tmp_path, f"adaptations={{mine: {{{method}}}}}")
    assert found.startswith("adaptations.mine.target_images: ")
    assert said in found


def test_consistency_needs_a_discriminator_of_whole_images(tmp_path):
    lone = "{name: instance_adversarial, consistency: 0.1}"
    useless = ["{name: adversarial, weight: 0}", "{name: adversarial, centre_aware: true}"]
    for others in ([], *([other] for other in useless)):
        (found,) = problems(tmp_path, of_components("{name: adabn}", lone, *others))
        assert found.startswith(
            "adaptations.mine.components[1].consistency: instance_adversarial compares"
        )
        assert "add {name: adversarial}" in found
    path = tmp_path / "trial.yaml"
    for components in (
        [lone, "{name: adversarial}"],
        ["{name: instance_adversarial}"],
        ["{name: instance_adversarial, weight: 0, consistency: 0.1}"],
    ):
        load_experiment(path, [of_components(*components)])


def test_an_experiment_made_in_python_is_refused_alike():
    made = Experiment(data=Data(domains={"scope": Domain(), "phone": Domain()}))
    made.trainer.learning_rate = math.nan
    made.detector.two_stage.hidden = 0
    made.adaptations["fair_source_only"] = Method(target_labels=-1)
    with pytest.raises(ConfigError) as caught:
        complete(made)
    named = {p.partition(":")[0] for p in caught.value.problems}
    assert named == {
        "detector.two_stage",
        "detector.two_stage.hidden",
        "trainer.learning_rate",
        "adaptations.fair_source_only.target_labels",
    }


# --- what is declared ---------------------------------------------------------------------------


def numbers_of(schema: type) -> list[tuple[type, str]]:
    """Every setting of a section that holds numbers, those of the sections within it, too."""
    found = []
    for name, hint in get_type_hints(schema).items():
        if name not in {f.name for f in fields(schema)}:
            continue
        inner = [a for a in (hint, *get_args(hint)) if isinstance(a, type)]
        inner += [b for a in get_args(hint) for b in get_args(a)]
        for kind in inner:
            if is_dataclass(kind):
                found += numbers_of(kind)
            elif kind in (int, float) and dict not in (hint, getattr(hint, "__origin__", None)):
                found.append((schema, name))
    return found


DECLARED = sorted(
    {pair for schema in (Experiment, *COMPONENTS.values()) for pair in numbers_of(schema)},
    key=lambda pair: (pair[0].__name__, pair[1]),
)


def test_every_number_declares_its_bounds_and_its_default_is_within():
    assert len(DECLARED) > 130
    assert {"Trainer", "Detector", "Augmentation", "Method", "TwoStage", "Slurm", "Published"} <= {
        schema.__name__ for schema, _ in DECLARED
    }
    bare = [
        f"{schema.__name__}.{name}"
        for schema, name in DECLARED
        for field in fields(schema)
        if field.name == name and field.metadata.get("bounds", Bounds()) == Bounds()
    ]
    assert not bare, "give these a number(...), a share(...) or Bounds"
    for schema in {schema for schema, _ in DECLARED}:
        assert not list(ranges(schema()))


def test_a_bound_is_one_of_the_numbers_unless_it_is_left_out():
    closed, open_ = Bounds(0, 1), Bounds(above=0, below=1)
    assert [closed.hold(x) for x in (-0.1, 0, 1, 1.1)] == [False, True, True, False]
    assert [open_.hold(x) for x in (0, 0.5, 1)] == [False, True, False]
    assert [Bounds().hold(x) for x in (math.nan, math.inf, -math.inf, 1e30)] == [False] * 3 + [True]


# --- what is shipped ----------------------------------------------------------------------------

CONFIGS = shipped("configs")
NAMES = {folder.name: sorted(p.stem for p in folder.glob("*.yaml")) for folder in CONFIGS.iterdir()}


@pytest.mark.parametrize("name", NAMES["adaptation"])
def test_every_shipped_method_is_within_bounds(name):
    method = load_method(name)
    assert not list(ranges(method))
    assert not check_method(name, method)


@pytest.mark.parametrize(
    ("group", "name"),
    [(g, n) for g in ("trainer", "detector", "augmentation") for n in NAMES[g]],
)
def test_every_shipped_preset_is_within_bounds(group, name, tmp_path):
    crop = ", crop: 0.15" if name == "cells" else ""
    path = tmp_path / "trial.yaml"
    label_space = "leukemiaattri" if name == "attridet" else "wbc"
    path.write_text(
        f"data: {{label_space: {label_space}, domains: {{scope: {{format: coco{crop}}}}}}}\n"
    )
    load_experiment(path, [f"{group}={name}"])


def test_every_shipped_table_is_within_bounds():
    for name in NAMES["published"]:
        assert not list(ranges(load_published(name)))


def test_weights_of_any_size_and_numbers_at_a_bound_are_taken():
    teacher = {"name": "mean_teacher", "weight": 250.0, "threshold": 1, "burn_in": 0, "ramp": 1}
    method = Method(components=[teacher, {"name": "adversarial", "weight": 0}])
    assert not check_method("mine", method)
    assert not list(ranges(replace(method, patch_mosaics=1.0)))
    method.components[0]["threshold"] = 0.01
    assert not check_method("mine", method), "below the default of `negative`"


def test_settings_are_read_without_torch():
    code = "import sys, da_leukemia.config; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
