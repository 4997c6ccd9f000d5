import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace
from math import inf, nan
from pathlib import Path

import pytest

from benchmarks.config import BenchConfig
from mvmae.config.evaluation import KnnConfig, LabelsConfig, ProbeConfig
from mvmae.config.figures import ReconstructConfig
from mvmae.config.files import from_json, to_json
from mvmae.config.model import ENCODERS, EncoderName, ModelConfig, num_visible
from mvmae.config.pretrain import ObjectiveConfig, PretrainConfig
from mvmae.config.views import ViewsConfig
from mvmae.errors import UserError

NO_CONTRAST = ObjectiveConfig(contrastive_weight=0.0)


def test_the_defaults_are_the_papers():
    config = PretrainConfig()
    assert config.model == ModelConfig(
        encoder="vit_base",
        image_size=224,
        patch_size=16,
        mask_ratio=0.8,
        decoder_depth=4,
        decoder_dim=512,
        latent="mean",
        head="none",
    )
    assert (config.objective.contrastive_weight, config.objective.temperature) == (2.0, 0.07)
    assert (config.views.num_views, config.views.targets) == (2, "two")
    assert config.views.crop_scale == (0.2, 1.0)
    assert (config.epochs, config.batch_size, config.warmup_epochs) == (1600, 256, 40.0)
    assert (config.base_lr, config.weight_decay, config.betas) == (1.5e-4, 0.05, (0.9, 0.95))


def test_every_named_encoder_has_a_size_with_heads_64_wide():
    assert EncoderName.__args__ == tuple(ENCODERS)
    widths = {name: size.width / size.num_heads for name, size in ENCODERS.items()}
    assert {name: width for name, width in widths.items() if width != 64} == {
        "vit_pico": 32,
        "vit_nano": 32,
        "vit_huge": 80,
    }


def test_patches_are_counted_by_rows_and_columns():
    config = ModelConfig(image_size=(48, 80), patch_size=16)
    assert config.height_width == (48, 80)
    assert config.grid == (3, 5)
    assert config.num_patches == 15
    assert config.num_visible == 3


def test_one_number_is_a_square_image():
    assert ModelConfig(image_size=224).height_width == (224, 224)


def test_the_visible_patches_are_maes_but_for_a_float_that_falls_short():
    for patches in range(1, 400):
        for percent in range(1, 100):
            ratio = percent / 100
            exact, rest = divmod(patches * (100 - percent), 100)
            assert num_visible(patches, ratio) == exact
            if rest:
                assert exact == int(patches * (1 - ratio))


def test_the_learning_rate_grows_with_the_batch():
    assert PretrainConfig(batch_size=512, base_lr=1e-3).lr == pytest.approx(2e-3)


def test_colours_are_normalised_as_imagenet_by_default():
    mean, std = PretrainConfig().pixel_statistics
    assert (mean, std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_other_channels_are_normalised_by_the_average_colour(channels):
    mean, std = ViewsConfig().pixel_statistics(channels)
    assert mean == pytest.approx([(0.485 + 0.456 + 0.406) / 3] * channels)
    assert std == pytest.approx([(0.229 + 0.224 + 0.225) / 3] * channels)


def test_own_pixel_statistics_are_used():
    views = ViewsConfig(mean=(0.5,), std=(0.25,))
    assert PretrainConfig(model=ModelConfig(in_channels=1), views=views).pixel_statistics == (
        (0.5,),
        (0.25,),
    )


REFUSED = [
    (ModelConfig, {"image_size": 225}, "image_size 225 is not a multiple of patch_size 16: 224"),
    (ModelConfig, {"image_size": (224, 100)}, "image_size 224 x 100 is .*: 224 x 96 would be"),
    (
        ModelConfig,
        {"image_size": 0},
        "image_size 0 is not a multiple of patch_size 16: 16 would be",
    ),
    (ModelConfig, {"patch_size": 0}, "patch_size must be at least 1"),
    (ModelConfig, {"in_channels": 0}, "in_channels must be at least 1"),
    (ModelConfig, {"decoder_depth": 0}, "decoder_depth must be at least 1"),
    (ModelConfig, {"decoder_dim": -32}, "decoder_dim must be at least 1"),
    (ModelConfig, {"decoder_dim": 100}, "decoder_dim 100 is not a multiple of 32"),
    (ModelConfig, {"mask_ratio": 0.0}, "mask_ratio must be between 0 and 1, not 0.0"),
    (ModelConfig, {"mask_ratio": 1.0}, "mask_ratio must be between 0 and 1, not 1.0"),
    (ModelConfig, {"mask_ratio": float("nan")}, "mask_ratio must be between 0 and 1, not nan"),
    (ModelConfig, {"image_size": 32}, "leaves 0 of 4 patches visible"),
    (ModelConfig, {"decoded_share": 0.0}, "decoded_share must be in \\(0, 1\\], not 0"),
    (ModelConfig, {"decoded_share": 1.1}, "decoded_share must .* not 1.1"),
    (ModelConfig, {"decoded_share": float("nan")}, "decoded_share must .* not nan"),
    (BenchConfig, {"part": "step", "model": ModelConfig(decoded_share=0.5)}, "no --peers"),
    (
        PretrainConfig,
        {
            "model": ModelConfig(decoded_share=0.5),
            "objective": ObjectiveConfig(reconstruct="all"),
        },
        "leave model.decoded_share at 1",
    ),
    (ViewsConfig, {"num_views": 0}, "num_views must be between 1 and 8, not 0"),
    (ViewsConfig, {"num_views": 9}, "num_views must be between 1 and 8, not 9"),
    (ViewsConfig, {"crop_scale": (0.0, 1.0)}, "crop_scale 0.0 1.0 must be two increasing shares"),
    (ViewsConfig, {"crop_scale": (0.9, 0.2)}, "crop_scale 0.9 0.2 must be"),
    (ViewsConfig, {"crop_scale": (0.2, 1.1)}, "crop_scale 0.2 1.1 must be"),
    (ViewsConfig, {"std": (0.2, 0.0, 0.2)}, "std must be between"),
    (ObjectiveConfig, {"contrastive_weight": -0.1}, "contrastive_weight must be finite and not"),
    (ObjectiveConfig, {"reconstruction_weight": -0.1}, "reconstruction_weight must be finite"),
    (
        ObjectiveConfig,
        {"reconstruction_weight": 0.0, "contrastive_weight": 0.0},
        "both losses have weight 0",
    ),
    (ObjectiveConfig, {"temperature": 0.0}, "temperature must be above 0, not 0.0"),
    (PretrainConfig, {"epochs": 0}, "epochs must be at least 1, not 0"),
    (PretrainConfig, {"batch_size": 0}, "batch_size must be at least 1, or auto, not 0"),
    (PretrainConfig, {"eval_every": 0}, "eval_every must be at least 1, not 0"),
    (PretrainConfig, {"log_every": 0}, "log_every must be at least 1, not 0"),
    (PretrainConfig, {"base_lr": 0.0}, "base_lr must be finite and above 0, not 0.0"),
    (PretrainConfig, {"base_lr": float("nan")}, "base_lr must be finite and above 0, not nan"),
    (PretrainConfig, {"epochs": 40}, "warmup_epochs 40 must be less than epochs 40"),
    (PretrainConfig, {"warmup_epochs": -1.0}, "warmup_epochs -1 must be"),
    (PretrainConfig, {"weight_decay": -0.1}, "weight_decay must be finite and not negative"),
    (PretrainConfig, {"betas": (0.9, 1.0)}, "betas must be in"),
    (PretrainConfig, {"clip_grad": 0.0}, "clip_grad must be above 0"),
    (PretrainConfig, {"workers": -1}, "workers must be between 0 and 512, not -1"),
    (PretrainConfig, {"seed": -1}, "seed must be between 0 and"),
    (PretrainConfig, {"resume": True, "overwrite": True}, "exclude each other"),
    (PretrainConfig, {"views": ViewsConfig(num_views=1)}, "contrast needs two views or more"),
    (PretrainConfig, {"batch_size": 1}, "contrast needs other images to compare with"),
    (
        PretrainConfig,
        {"model": ModelConfig(head="mlp"), "objective": NO_CONTRAST},
        "model.head has no effect without contrast",
    ),
    (
        PretrainConfig,
        {"views": ViewsConfig(mean=(0.5,))},
        "views.mean has 1 values for 3 channels",
    ),
    (
        PretrainConfig,
        {"model": ModelConfig(in_channels=1), "views": ViewsConfig(std=(0.2, 0.2, 0.2))},
        "views.std has 3 values for 1 channels",
    ),
    (KnnConfig, {"encoder": "run", "k": (5, 0)}, "k must be at least 1, not 0"),
    (KnnConfig, {"encoder": "run", "k": ()}, "k is empty: name a number of neighbours"),
    (KnnConfig, {"encoder": "run", "k": (5, 7, 5)}, "k lists a value twice: 5 7 5"),
    (KnnConfig, {"encoder": "run", "data": ""}, "DATA is empty"),
    (KnnConfig, {"encoder": "run", "temperature": inf}, "temperature must be finite"),
    (KnnConfig, {"encoder": "run", "temperature": 0.0}, "temperature must be finite and above 0"),
    (KnnConfig, {"encoder": "run", "max_train": 0}, "max_train must be at least 1, not 0"),
    (ProbeConfig, {"encoder": "run", "max_test": 0}, "max_test must be at least 1, not 0"),
    (ProbeConfig, {"encoder": "run", "batch_size": 0}, "batch_size must be at least 1, not 0"),
    (ProbeConfig, {"encoder": "run", "workers": -1}, "workers must be between 0 and 512, not -1"),
    (ProbeConfig, {"encoder": "run", "costs": ()}, "costs is empty: name numbers above 0"),
    (ProbeConfig, {"encoder": "run", "costs": (1.0, 0.0)}, "costs must be finite and above 0"),
    (ProbeConfig, {"encoder": "run", "costs": (inf,)}, "costs must be finite and above 0"),
    (ProbeConfig, {"encoder": "run", "costs": (1.0, nan)}, "costs must be finite and above 0"),
    (ProbeConfig, {"encoder": "run", "max_iterations": 0}, "max_iterations must be at least 1"),
    (ProbeConfig, {"encoder": "run", "epochs": 10}, "warmup_epochs 10 must be less than epochs 10"),
    (ProbeConfig, {"encoder": "run", "step_size": 0}, "step_size must be at least 1, not 0"),
    (ProbeConfig, {"encoder": "run", "base_lr": nan}, "base_lr must be finite and above 0"),
    (ProbeConfig, {"encoder": "run", "crop_scale": (0.5, 0.1)}, "crop_scale 0.5 0.1 must be two"),
    (
        ProbeConfig,
        {"encoder": "run", "save_every_minutes": nan},
        "save_every_minutes must be at least 0",
    ),
    (LabelsConfig, {"encoder": "run", "shares": ()}, "name shares, or numbers with --per-class"),
    (LabelsConfig, {"encoder": "run", "shares": (0.0, 1.0)}, r"shares must be in \(0, 1\]"),
    (LabelsConfig, {"encoder": "run", "shares": (1.5,)}, r"shares must be in \(0, 1\]"),
    (LabelsConfig, {"encoder": "run", "shares": (0.5, 0.5)}, "shares lists a value twice"),
    (LabelsConfig, {"encoder": "run", "per_class": (0,)}, "per_class must be at least 1"),
    (LabelsConfig, {"encoder": "run", "against": ("a", "a")}, "against lists a value twice"),
    (LabelsConfig, {"encoder": "run", "draws": 0}, "draws must be at least 1, not 0"),
    (LabelsConfig, {"encoder": "run", "costs": (0.0,)}, "costs must be finite and above 0"),
    (ReconstructConfig, {"encoder": "run", "count": 0}, "count must be at least 1, not 0"),
    (ReconstructConfig, {"encoder": "run", "mask_ratio": 1.0}, "between 0 and 1, not 1.0"),
    (BenchConfig, {"part": "step", "rounds": 0}, "rounds must be at least 1, not 0"),
]


@pytest.mark.parametrize(("kind", "values", "message"), REFUSED)
def test_a_value_that_cannot_work_is_refused_with_what_would(kind, values, message):
    with pytest.raises(UserError, match=message):
        kind(**values)


def test_without_contrast_one_view_and_one_image_are_enough():
    config = PretrainConfig(
        objective=NO_CONTRAST, views=ViewsConfig(num_views=1), batch_size=1, clip_grad=1.0
    )
    assert config.batch_size == 1


def test_a_config_never_changes():
    config = PretrainConfig()
    with pytest.raises(FrozenInstanceError):
        config.epochs = 3


def test_json_brings_back_every_kind_of_value(tmp_path):
    config = PretrainConfig(
        data=("first", "second"),
        out=tmp_path / "run",
        model=ModelConfig(image_size=(32, 48), patch_size=8, in_channels=1, head="mlp"),
        views=ViewsConfig(mean=(0.5,), std=(0.25,), flip="none"),
        clip_grad=0.5,
        workers=3,
        eval_data="labelled",
        log=("tensorboard",),
        resume=True,
    )
    assert from_json(to_json(config), PretrainConfig, source="config.json") == config


@pytest.mark.parametrize(
    "config",
    [
        KnnConfig(encoder="run", k=(5,), out=Path("there"), image_size=(32, 64)),
        ProbeConfig(encoder="run", costs=(0.5,), max_train=100),
        ProbeConfig(encoder="run", protocol="mae", crop_scale=(0.2, 0.9), save_every_minutes=1.0),
        LabelsConfig(encoder="run", against=("timm:a", "b"), per_class=(1, 5), shares=()),
        ReconstructConfig(encoder="run", mask_ratio=0.5),
        BenchConfig(part="input", quick=True),
    ],
)
def test_json_brings_back_every_commands_config(config):
    assert from_json(to_json(config), type(config), source="config.json") == config


def test_json_is_for_people_too():
    text = to_json(PretrainConfig())
    plain = json.loads(text)
    assert plain["out"] == "runs/pretrain"
    assert plain["model"]["image_size"] == 224
    assert plain["betas"] == [0.9, 0.95]
    assert text.endswith("}\n")


def test_json_may_leave_out_what_is_default():
    assert from_json('{"epochs": 50}', PretrainConfig, source="") == PretrainConfig(epochs=50)


REFUSED_JSON = [
    ('{"epoch": 3}', "unknown key 'epoch': did you mean 'epochs'? @ my.json"),
    ('{"xyz": 3}', "unknown key 'xyz' @ my.json"),
    (
        '{"model": {"mask_ration": 0.3}}',
        "unknown key 'mask_ration': did you mean 'mask_ratio'? @ my.json.model",
    ),
    ('{"epochs": "many"}', "a value is not int ("),
    ('{"epochs": "many"}', "@ my.json.epochs"),
    ('{"workers": "some"}', "@ my.json.workers"),
    ('{"model": {"encoder": "vit"}}', "@ my.json.model.encoder"),
    ('{"views": {"crop_scale": [0.1]}}', "@ my.json.views.crop_scale"),
    ('{"model": {"image_size": [1, 2, 3]}}', "@ my.json.model.image_size"),
    ('{"model": {"mask_ratio": 1.5}}', "mask_ratio must be between 0 and 1, not 1.5"),
    ('{"seed": -1}', "seed must be between 0 and"),
    ("{", "my.json is not a config: Expecting property name"),
    ("[]", "my.json is not a config"),
    ("null", "my.json is not a config"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED_JSON)
def test_json_that_cannot_work_is_refused_with_its_place(text, message):
    with pytest.raises(UserError) as caught:
        from_json(text, PretrainConfig, source="my.json")
    assert message in str(caught.value)
    assert "my.json" in str(caught.value)


def test_json_without_a_required_key_names_it():
    with pytest.raises(UserError, match=r"a required key is missing @ my.json.encoder"):
        from_json("{}", KnnConfig, source="my.json")


def test_json_with_several_faults_names_them_all():
    with pytest.raises(UserError) as caught:
        from_json('{"epoch": 3, "model": {"encoder": "vit"}}', PretrainConfig, source="my.json")
    assert "'epoch'" in str(caught.value)
    assert "my.json.model.encoder" in str(caught.value)


@pytest.mark.parametrize("kind", [PretrainConfig, ModelConfig, ViewsConfig, ObjectiveConfig])
def test_no_default_is_shared_and_changeable(kind):
    for field in fields(kind):
        value = getattr(kind(), field.name)
        assert is_dataclass(value) or isinstance(value, str | int | float | tuple | Path | None), (
            field.name
        )


def test_a_changed_copy_is_checked_again():
    with pytest.raises(UserError, match="temperature"):
        replace(ObjectiveConfig(), temperature=-1.0)


def test_configs_and_recipes_load_without_torch_and_numpy():
    code = (
        "import sys, mvmae.config, mvmae.recipes, mvmae.cli; "
        "sys.exit(', '.join({'torch', 'numpy', 'torchvision'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('{"data": "photos"}', "data"),  # is read as p, h, o, t, o, s
        ('{"epochs": 2.7, "warmup_epochs": 0}', "epochs"),  # becomes 2
        ('{"epochs": "50"}', "epochs"),
        ('{"objective": {"normalize_targets": "false"}}', "objective.normalize_targets"),  # is true
    ],
)
def test_json_of_another_kind_is_refused_and_not_bent(text, place):
    with pytest.raises(UserError, match=rf"@ my.json.{place}"):
        from_json(text, PretrainConfig, source="my.json")


def test_a_weight_that_is_no_number_is_refused():
    with pytest.raises(UserError, match="weight"):
        ObjectiveConfig(contrastive_weight=float("nan"))


def test_normalised_targets_of_one_number_are_refused():
    model = ModelConfig(encoder="vit_pico", image_size=8, patch_size=1, in_channels=1)
    with pytest.raises(UserError, match="normalize_targets"):
        PretrainConfig(model=model)
