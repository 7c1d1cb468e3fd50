"""The parts of a pipeline that diffusers saved, from a folder or, when a hub id is named, from there; only safetensors.

Classes are those that the folder's own index names, among the ones listed here: nothing else is imported, and no code of a
checkpoint is run. Every weight must find its place, n of n.
"""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fokker.adapt.vae import KINDS as AUTOENCODERS
from fokker.errors import FokkerError, unknown

NETS = (
    "UNet2DModel", "UNet2DConditionModel", "Transformer2DModel", "DiTTransformer2DModel", "PixArtTransformer2DModel",
    "SD3Transformer2DModel", "FluxTransformer2DModel",
)  # fmt: skip
ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel")
TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast", "T5Tokenizer", "T5TokenizerFast")
ROLES = {"unet": NETS, "transformer": NETS, "vae": AUTOENCODERS, "vqvae": AUTOENCODERS}
ROLES |= {f"text_encoder{k}": ENCODERS for k in ("", "_2", "_3")} | {
    f"tokenizer{k}": TOKENIZERS for k in ("", "_2", "_3")
}
UNUSED = ("safety_checker", "feature_extractor", "image_encoder", "watermark")  # nothing of the samples depends on them


@dataclass(frozen=True)
class Parts:
    """What a pipeline consists of: its class's name, its modules by role, its scheduler (or None), its other settings."""

    name: str
    modules: dict[str, Any]
    scheduler: Any = None
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def net(self) -> Any:
        """The network that denoises."""
        return self.modules.get("unet") or self.modules.get("transformer")


def read_folder(folder: Path, text: bool, dtype: torch.dtype, variant: str | None = None) -> Parts:
    """The parts of a pipeline's folder (or of a single network's), without text encoders unless `text`.

    Raises FokkerError for a folder of something else, a part that is not supported, weights that are not safetensors, or that
    do not fit.
    """
    from fokker.adapt.schedule import read_scheduler

    if not (folder / "model_index.json").is_file():
        if not (folder / "config.json").is_file():
            raise FokkerError(
                f"{str(folder)!r} holds no model_index.json or config.json; give the folder that diffusers saved"
            )
        name = str(_json(folder / "config.json").get("_class_name"))
        if name not in NETS:
            raise unknown("network", name, NETS)
        scheduler = read_scheduler(folder) if (folder / "scheduler_config.json").is_file() else None
        return Parts(name, {"unet": _module("diffusers", name, folder, dtype, variant)}, scheduler)
    index = _json(folder / "model_index.json")
    modules: dict[str, Any] = {}
    # what fokker.adapt.to_diffusers wrote beside it
    settings = _json(folder / "fokker.json") if (folder / "fokker.json").is_file() else {}
    scheduler = None
    for role, entry in index.items():
        if not _is_part(entry):
            settings[role] = entry
        elif role in UNUSED or entry[1] is None or (not text and role.startswith(("text_encoder", "tokenizer"))):
            continue
        elif role == "scheduler":
            scheduler = read_scheduler(_where(folder, role))
        else:
            library, name = check_part(role, entry)
            where = _where(folder, role)
            if name in TOKENIZERS:
                modules[role] = _tokenizer(name, where)
            else:
                modules[role] = _module(library, name, where, dtype, variant)
    return Parts(str(index.get("_class_name", "")), modules, scheduler, settings)


def check_part(role: str, entry: Any) -> tuple[str, str]:
    """(library, class) of a part of an index; raises FokkerError unless it is one of those that are supported."""
    if role not in ROLES:
        raise FokkerError(
            f"this pipeline has a {role} ({entry[1]}), which is not supported; the parts that are: {', '.join(ROLES)}"
        )
    library, name = entry
    if name not in ROLES[role] or library not in ("diffusers", "transformers", "stable_diffusion"):
        raise unknown(f"class of {role}", str(name), ROLES[role])
    return "transformers" if name in ENCODERS else "diffusers", name


def _is_part(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and all(v is None or isinstance(v, str) for v in entry)


def _where(folder: Path, role: str) -> Path:
    """A part's folder; the pipeline's own where old ones keep all files together."""
    return folder / role if (folder / role).is_dir() else folder


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise FokkerError(f"{path} is not readable JSON ({error}); restore it from a copy") from None
    if not isinstance(found, dict):
        raise FokkerError(f"{path} holds no JSON object; restore it from a copy")
    return found


@contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' own bars and warnings: what matters is said here, as an error."""
    import diffusers.utils.logging as theirs
    import transformers.utils.logging as others

    before = theirs.get_verbosity(), others.get_verbosity()
    bars = theirs.is_progress_bar_enabled(), others.is_progress_bar_enabled()
    for module in (theirs, others):
        module.set_verbosity_error()
        module.disable_progress_bar()
    try:
        yield
    finally:
        for module, level, bar in zip((theirs, others), before, bars):
            module.set_verbosity(level)
            if bar:
                module.enable_progress_bar()


def _module(library: str, name: str, where: Path, dtype: torch.dtype, variant: str | None) -> Any:
    """A module from a folder, every weight in its place."""
    import diffusers
    import transformers

    kind = getattr(transformers if library == "transformers" else diffusers, name)
    given: dict[str, Any] = {"use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    given |= {"variant": variant} if variant else {}
    given |= {"dtype" if library == "transformers" else "torch_dtype": dtype}
    if not any(where.glob("*.safetensors")):
        raise FokkerError(
            f"{where} has no weights as safetensors; pickled ones are not read, convert them (save_pretrained) first"
        )
    try:
        with quiet():
            module, info = kind.from_pretrained(where, **given)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise FokkerError(
            f"{where} does not load as {name} ({_short(error)}); give the folder that diffusers saved"
        ) from None
    wrong = {
        k: sorted(str(v) for v in info.get(k) or ()) for k in ("missing_keys", "unexpected_keys", "mismatched_keys")
    }
    if any(wrong.values()):
        all_of = len(module.state_dict())
        said = "; ".join(
            f"{k.split('_')[0]}: {', '.join(v[:3])}{' ...' if len(v) > 3 else ''}" for k, v in wrong.items() if v
        )
        found = all_of - len(wrong["missing_keys"]) - len(wrong["mismatched_keys"])
        raise FokkerError(
            f"{where} matches {found} of {all_of} weights of {name} ({said}); give weights of this configuration"
        )
    return module.eval()


def _tokenizer(name: str, where: Path) -> Any:
    import transformers

    try:
        with quiet():
            return getattr(transformers, name).from_pretrained(where, local_files_only=True)
    except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
        raise FokkerError(
            f"{where} does not load as {name} ({_short(error)}); give the folder that diffusers saved"
        ) from None


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def download(name: str, text: bool, variant: str | None = None) -> Path:
    """The folder of a hub id, fetched after saying what and how large; only the parts that are used, only safetensors."""
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    try:
        listed = HfApi().model_info(name, files_metadata=True).siblings or []
        sizes = {f.rfilename: f.size or 0 for f in listed}
        if "model_index.json" in sizes:
            index = _json(Path(hf_hub_download(name, "model_index.json")))
            entries = {role: entry for role, entry in index.items() if _is_part(entry) and entry[1] is not None}
            roles = [
                r for r in entries if r not in UNUSED and (text or not r.startswith(("text_encoder", "tokenizer")))
            ]
            for role in roles:
                if role != "scheduler":
                    check_part(role, entries[role])
        else:
            roles = []
        files = wanted_files(sizes, roles, variant)
        total = sum(sizes[f] for f in files)
        print(f"{name} from the Hugging Face hub: {len(files)} files, {total / 2**20:.0f} MiB", file=sys.stderr)
        return Path(snapshot_download(name, allow_patterns=files))
    except FokkerError:
        raise
    except Exception as error:  # the hub client raises many kinds; the user needs one sentence
        raise FokkerError(f"hf:{name} cannot be loaded ({_short(error)})") from error


def wanted_files(sizes: Mapping[str, int], roles: list[str], variant: str | None) -> list[str]:
    """The files of the roles (and of the top folder) to fetch: JSON, vocabularies, and the weights of one variant."""
    out = []
    for name in sizes:
        folder, _, file = name.rpartition("/")
        if folder and folder not in roles:
            continue
        if file.endswith(".safetensors"):
            # a whole-pipeline file of another tool lies in the top folder, where an old pipeline keeps its only network
            if not folder and any(f"{role}/" in other for other in sizes for role in roles):
                continue
            marked = re.fullmatch(r"[^.]+\.([a-z0-9_]+?)(-\d+-of-\d+)?\.safetensors", file)
            if (marked[1] if marked else None) != variant or file.startswith(("flax", "openvino")):
                continue
        elif not file.endswith((".json", ".txt", ".model")) or "flax" in file or "onnx" in file:
            continue
        out.append(name)
    return sorted(out)


def locate(source: str | Path, text: bool = True, variant: str | None = None) -> Path:
    """The folder that `source` names; hf:ORG/NAME is fetched."""
    if str(source).startswith("hf:"):
        return download(str(source)[3:], text, variant)
    path = Path(source)
    if not path.is_dir():
        hub = f", or hf:{source} to fetch it from the hub" if re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) else ""
        raise FokkerError(f"there is no folder {str(source)!r}; give the folder that diffusers saved{hub}")
    return path
