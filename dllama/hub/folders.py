"""Where dllama keeps things, and which models are there.

Standard library only, since ``launch.py`` uses it before anything is installed. Knows names and sizes of files, not
what is in them. A model NAME is a folder ``NAME`` with ``dllama_model_NAME.m`` and ``dllama_tokenizer_NAME.t``, as
``launch.py`` downloads it; any folder with one ``.m`` and one ``.t`` file will do, or with one ``.gguf`` file, which
has its tokenizer in it, or with the files of a Hugging Face model. An unfinished download lies beside its final name,
with something more behind it: ``dllama_model_NAME.m.part``.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import dllama

BUNDLED = "demo"
ORIGIN = "origin.json"  # says which repository a folder's files are from
_UNFINISHED = (".part", ".part.json", ".part.json.new")  # all that a download leaves behind a file's name
_PACKAGE = Path(dllama.__file__).resolve().parent
# What a Hugging Face model consists of.
CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model")
SMALL_FILES = (
    *(CONFIG, "generation_config.json", *TOKENIZERS, "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
)
_WEIGHTS = ".safetensors"
_HF_FILES = {*SMALL_FILES, INDEX, "vocab.json", "merges.txt", "chat_template.json"}  # the last three nobody reads
_MADE = re.compile(r"dllama_model_.+_q40\.m")  # of what was fetched


@dataclass(frozen=True, slots=True)
class Installed:
    """A model on this disk.

    Attributes:
        name: As users name it.
        folder: Where it is.
        model: Its ``.m`` file, which may be missing, or its ``.gguf`` file, or the folder of a Hugging Face model.
        tokenizer: Its ``.t`` file, which may be missing, or what holds the model, too.
        leftovers: Files of unfinished downloads.
        parts: Files of a Hugging Face model, or of a repository.
    """

    name: str
    folder: Path
    model: Path
    tokenizer: Path
    leftovers: tuple[Path, ...] = ()
    parts: tuple[Path, ...] = ()

    @property
    def files(self) -> list[Path]:
        """All its files that are there, and quantized copies of them."""
        paths = dict.fromkeys([*self.parts, self.model, self.tokenizer, *self.leftovers, *copies_of(self.model)])
        return [path for path in paths if path != self.folder and os.path.lexists(path)]

    @property
    def num_bytes(self) -> int:
        """Bytes of its files."""
        return sum(size_of(path) for path in self.files)

    @property
    def is_complete(self) -> bool:
        """Whether model and tokenizer are there."""
        return is_model(self.model) and (self.tokenizer in (self.model, self.folder) or self.tokenizer.is_file())

    @property
    def is_bundled(self) -> bool:
        """Whether it came with dllama."""
        return self.folder == _PACKAGE / "demo"


def config_file() -> Path:
    """Where users write their settings."""
    return _xdg("XDG_CONFIG_HOME", ".config") / "config.toml"


def data_dir() -> Path:
    """Where models are kept outside a checkout."""
    return _xdg("XDG_DATA_HOME", ".local/share")


def state_dir() -> Path:
    """Where things are kept that are nice to find again, such as the history of chats; may not exist yet."""
    return _xdg("XDG_STATE_HOME", ".local/state")


def cache_dir() -> Path:
    """Where things are kept that can be made again, such as hashes of models; may not exist yet."""
    return _xdg("XDG_CACHE_HOME", ".cache")


def copy_path(model: Path, kind: str) -> Path:
    """Give the place of a model's quantized copy; ``kind`` is a word for how it is quantized."""
    return cache_dir() / "quantized" / f"{Path(os.path.realpath(model)).name[:40]}-{kind}-{_mark(model)}"


def copies_of(model: Path) -> list[Path]:
    """List the quantized copies of a model."""
    return sorted((cache_dir() / "quantized").glob(f"*-{_mark(model)}"))


def _mark(model: Path) -> str:
    return hashlib.sha256(os.fsencode(os.path.realpath(model))).hexdigest()[:16]


def make_state_dir() -> Path:
    """Make ``state_dir()`` if it is not there, for this user's eyes only.

    Raises:
        OSError: It cannot be made.
    """
    folder = state_dir()
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _xdg(variable: str, default: str) -> Path:
    """Give dllama's folder by the rules of the XDG base directories: a relative path counts as none."""
    chosen = os.environ.get(variable, "")
    return (Path(chosen) if Path(chosen).is_absolute() else _home() / default) / "dllama"


def _home() -> Path:
    """Give the home folder; users without one, as containers have them, get the root of the file system."""
    home = os.environ.get("HOME", "")
    if Path(home).is_absolute():
        return Path(home)
    try:
        import pwd

        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except (ImportError, KeyError):
        return Path("/")


def model_dirs() -> list[Path]:
    """List the folders of models: those of ``DLLAMA_MODELS``, ``models`` of a checkout, and that of this user.

    The first is where downloads go. They need not exist.
    """
    dirs = [Path(part).absolute() for part in os.environ.get("DLLAMA_MODELS", "").split(os.pathsep) if part]
    checkout = _PACKAGE.parent
    if (checkout / "launch.py").is_file():
        dirs.append(checkout / "models")
    return list(dict.fromkeys([*dirs, data_dir() / "models"]))


def is_plain_name(name: str) -> bool:
    """Whether ``name`` names a thing inside a folder: one component, not hidden, printable."""
    return name.isprintable() and not name.startswith(".") and name == name.strip() != "" and not {*"/\\"} & {*name}


def installed_models() -> list[Installed]:
    """List the models in all folders, whole or not; where a name comes twice, the first is the one that is used."""
    return [model for folder in model_dirs() for model in _models_in(folder)]


def bundled_model() -> Installed:
    """Give the small model that comes with dllama."""
    folder = _PACKAGE / "demo"
    return Installed(BUNDLED, folder, folder / "model.m", folder / "tokenizer.t")


def find_installed(name: str) -> Installed | None:
    """Find a model by its name, ``-`` standing for ``_`` too; one that is whole rather than one that is not."""
    if name == BUNDLED:
        return bundled_model()
    wanted = {name, name.replace("-", "_")}
    found = [model for model in installed_models() if model.name in wanted]
    return next((model for model in found if model.is_complete), found[0] if found else None)


def find_model(name: str) -> Installed | None:
    """Find a model that can be run by its name."""
    found = find_installed(name)
    return found if found is not None and found.is_complete else None


def is_model(path: Path) -> bool:
    """Whether a model may be there: a file, or the folder of a Hugging Face model."""
    return path.is_file() or (path / CONFIG).is_file()


def find_tokenizer(model: Path) -> Path | None:
    """Find the tokenizer of a model: it has one in it, or there is one of its name, or only one, in its folder."""
    if model.suffix == ".gguf":
        return model
    if model.is_dir():
        names = _names(model)
        return model if set(TOKENIZERS) & {*names} else _only(names, model, ".t")
    stem = model.name.removesuffix(".m")
    named = [f"{stem}.t"]
    if stem.startswith("dllama_model_"):
        named.insert(0, f"dllama_tokenizer_{stem.removeprefix('dllama_model_')}.t")
    for name in named:
        if (model.parent / name).is_file():
            return model.parent / name
    names = _names(model.parent)
    return _only(names, model.parent, ".t") or (model.parent if set(TOKENIZERS) & {*names} else None)


def is_weights(name: str) -> bool:
    """Whether a file of a Hugging Face model holds weights, or says which do."""
    return name.endswith(_WEIGHTS) or name == INDEX


def size_of(path: Path) -> int:
    """Bytes of a file, 0 if it cannot be seen."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _models_in(folder: Path) -> Iterator[Installed]:
    for name in _names(folder):
        if is_plain_name(name):
            found = _model_in(folder / name)
            if found is not None:
                yield found


def _model_in(folder: Path) -> Installed | None:
    """Give the model that a folder holds, if it holds one."""
    name, names = folder.name, _names(folder)
    model, tokenizer = folder / f"dllama_model_{name}.m", folder / f"dllama_tokenizer_{name}.t"
    unfinished = {file.name + ending for file in (model, tokenizer) for ending in _UNFINISHED}
    leftovers = tuple(folder / each for each in names if each in unfinished)
    if leftovers or {model.name, tokenizer.name} & {*names}:
        return Installed(name, folder, model, tokenizer, leftovers)
    if ORIGIN in names:
        return _fetched_model(folder, names)
    only = _only(names, folder, ".m") or _only(names, folder, ".gguf")
    if only is not None:
        return Installed(name, folder, only, find_tokenizer(only) or tokenizer)
    if CONFIG not in names or not any(each.endswith(_WEIGHTS) for each in names):
        return None
    parts = tuple(folder / each for each in names if is_weights(each) or each in _HF_FILES)
    return Installed(name, folder, folder, find_tokenizer(folder) or folder / TOKENIZERS[0], leftovers, parts)


def _fetched_model(folder: Path, names: list[str]) -> Installed:
    """Give the model of a folder that ``launch.py`` fills from a repository, whole or not."""
    paths = [folder / name for name in names if _is_fetched(name)]
    ggufs = [path for path in paths if path.suffix == ".gguf"]
    of = re.search(r"-of-(\d{5})\.gguf$", ggufs[0].name) if ggufs else None
    whole = ggufs if of is None or int(of[1]) == len(ggufs) else []
    models = [*(path for path in paths if path.suffix == ".m"), *whole]
    model = models[0] if models else folder / f"dllama_model_{folder.name}_q40.m"
    leftovers = tuple(path for path in paths if path.name.endswith(_UNFINISHED) or is_weights(path.name))
    parts = tuple(path for path in paths if path not in leftovers)
    return Installed(folder.name, folder, model, find_tokenizer(model) or folder / TOKENIZERS[0], leftovers, parts)


def _is_fetched(name: str) -> bool:
    """Whether ``launch.py`` gives such names to what it fetches from a repository, and makes of it."""
    whole = re.sub(r"(\.[0-9a-f]{8})?\.part(\.json(\.new)?)?$", "", name)
    is_large = is_weights(whole) or whole.endswith(".gguf") or _MADE.fullmatch(whole) is not None
    return is_large or whole in {*_HF_FILES, ORIGIN, f"{ORIGIN}.new"}


def _only(names: list[str], folder: Path, suffix: str) -> Path | None:
    """Give the only file of ``folder`` that ends in ``suffix``."""
    found = [folder / name for name in names if name.endswith(suffix) and (folder / name).is_file()]
    return found[0] if len(found) == 1 else None


def _names(folder: Path) -> list[str]:
    """List a folder by name; one that cannot be read holds nothing."""
    try:
        return sorted(path.name for path in folder.iterdir())
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return []
