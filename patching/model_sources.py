"""Where a model comes from: what its name means, and how its weights and tokenizer are read without running code."""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from patching.errors import InvalidWeights, ModelNotFound
from patching.weight_files import require_inside

ZOO = Path(__file__).parent / "zoo"
"""The models that ship as files, a folder each."""


def zoo_names() -> tuple[str, ...]:
    """Models that ship as files, as ``zoo:NAME``; `patching.compiled.zoo_names` are those without."""
    if not ZOO.is_dir():
        return ()
    folders = (path for path in sorted(ZOO.iterdir()) if not path.name.startswith("."))  # one being written has a dot
    return tuple(f"zoo:{path.name}" for path in folders if (path / "config.json").is_file())


def near_names(name: str) -> tuple[str, ...]:
    """The models that a misspelt name may mean, of all that ``zoo:NAME`` can be; the nearest first, at most three.

    Args:
        name: with or without ``zoo:``, in letters of either case. If that is all that is wrong, there is one answer.

    Example:
        >>> near_names("Reverse"), near_names("zoo:reverse_lm")
        (('zoo:reverse',), ('zoo:reverse_ln', 'zoo:reverse', 'zoo:reverse_trained'))
    """
    from patching import agreement_toy, compiled
    from patching.compiled.norms import SUFFIX, why_not

    normed = [f"{each}{SUFFIX}" for each in compiled.zoo_names()]
    names = [*zoo_names(), *compiled.zoo_names(), *normed, agreement_toy.NAME]
    known = {each.removeprefix("zoo:").casefold(): each for each in names}
    folded = name.casefold().removeprefix("zoo:")
    near = [folded] if folded in known else difflib.get_close_matches(folded, known, n=6)
    found = (known[each] for each in near)  # which have LayerNorm is asked of these alone: for all it takes a second
    return tuple(each for each in found if each not in normed or why_not(compiled.program(each)) is None)[:3]


def _did_you_mean(name: str) -> str:
    near = near_names(name)
    return f" Did you mean {' or '.join(near)}?" if near else ""


def folder_of(name: str) -> Path | None:
    """The directory that a name means, or None for a hub name."""
    if name.startswith("zoo:"):
        if name not in zoo_names():
            raise ModelNotFound(
                f"expected one of {', '.join(zoo_names())} or a compiled model; got {name!r}, which does not ship. "
                f"`wiretrace models` lists them.{_did_you_mean(name)}"
            )
        return ZOO / name.removeprefix("zoo:")
    try:
        path = Path(name).expanduser()
        is_there, is_folder = path.exists(), path.is_dir()
    except (OSError, RuntimeError) as error:  # a name that is too long, or a home that nobody has
        raise ModelNotFound(f"expected a directory with config.json and *.safetensors; {name!r}: {error}") from error
    if is_folder:
        return path
    if is_there or name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith(".safetensors"):
        raise ModelNotFound(
            f"expected a directory with config.json and *.safetensors; {name} is "
            f"{'a file' if is_there else 'not there'}."
        )
    return None


def require_safe_files(folder: Path) -> None:
    """Check that a folder has a configuration and whole safetensors weights, and that nothing leads out of it.

    Raises:
        ModelNotFound: there is no configuration.
        InvalidWeights: there are no such weights, they are cut off, or a file is a link that leads out.
    """
    if not (folder / "config.json").is_file():
        raise ModelNotFound(
            f"expected config.json in {folder}; it is not there. Save the model with `save_pretrained(folder)`."
        )
    require_inside(folder)
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        pickles = [path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".pkl")]
        raise InvalidWeights(
            f"expected *.safetensors weights in {folder}; found {', '.join(pickles) or 'none'}. "
            "Pickled weights can run code and are refused: load them where you trust them, then save with "
            "`model.save_pretrained(folder)`, which writes safetensors."
        )
    from safetensors import SafetensorError, safe_open

    for path in weights:
        try:
            with safe_open(path, framework="pt") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            raise InvalidWeights(
                f"expected whole safetensors weights; {path} is {path.stat().st_size:,} bytes and cannot be read "
                f"({error}). It is probably truncated: copy or save it again."
            ) from error


def require_reachable(name: str) -> None:
    """Fail at once, not after many retries, when a hub model is neither cached nor reachable, or can be none."""
    import socket
    from urllib.parse import urlparse

    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(name, "config.json")
    except (HFValidationError, OSError) as error:
        raise ModelNotFound(
            f"expected a local directory, one of {', '.join(zoo_names()) or 'the shipped models'}, or the name of a "
            f"model on the Hugging Face hub (letters, digits, -, _ and . after OWNER/); got {name!r}."
            f"{_did_you_mean(name)}"
        ) from error
    if isinstance(cached, str):
        return
    hint = (
        f"{name!r} is neither a local directory, nor one of {', '.join(zoo_names()) or 'the shipped models'}, "
        "nor in the local Hugging Face cache"
    )
    if constants.HF_HUB_OFFLINE:
        raise ModelNotFound(
            f"{hint}, and HF_HUB_OFFLINE is set. Give a directory, or fetch the model first.{_did_you_mean(name)}"
        )
    if any(os.environ.get(key) for key in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return
    host = urlparse(constants.ENDPOINT)
    try:
        socket.create_connection((host.hostname or "", host.port or 443), timeout=0.8).close()
    except OSError as error:
        raise ModelNotFound(
            f"{hint}, and the hub cannot be reached from here ({error}). Fetch the model where there is a network, "
            f"save it with `save_pretrained(folder)` and give that folder.{_did_you_mean(name)}"
        ) from error


def load_hugging_face(source: str | Path, *, dtype: torch.dtype) -> tuple[Any, Any]:
    """A causal language model, in evaluation mode, and its tokenizer or None, from a folder or by a hub name.

    Raises:
        ModelNotFound: there is none, or Hugging Face cannot load it.
        InvalidWeights: weights are missing or of another shape, or the tokenizer cannot be read.
    """
    import transformers

    local = isinstance(source, Path)
    options: dict[str, Any] = {"local_files_only": local, "trust_remote_code": False}
    try:
        config = transformers.AutoConfig.from_pretrained(source, **options)
        with _quiet(transformers):
            loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
                source, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
            )
            model, info = loaded
    except Exception as error:  # configurations and files go wrong in many ways, and every library raises its own
        near = "" if local else _did_you_mean(str(source))
        raise ModelNotFound(
            f"expected a causal language model in {source}; it cannot be loaded: {error}{near}"
        ) from error
    missing = sorted(info.get("missing_keys", ())) + sorted(map(str, info.get("mismatched_keys", ())))
    if missing:
        raise InvalidWeights(
            f"expected a complete checkpoint in {source}; {len(missing)} weights are missing or of another shape "
            f"({', '.join(missing[:3])}, …) and would be random. Use the checkpoint of the full causal language model."
        )
    return model.eval(), _tokenizer(source, **options)


def _tokenizer(source: str | Path, **options: Any) -> Any:
    """The tokenizer of a Hugging Face model, or None if it comes without."""
    import transformers

    if isinstance(source, Path) and (source / "tokenizer.json").is_file():
        with readable_tokenizer(source):
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
    else:
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
    return tokenizer if tokenizer.vocab_size else None  # without files, some classes make up an empty one


@contextlib.contextmanager
def readable_tokenizer(folder: Path) -> Iterator[None]:
    """Whatever goes wrong in reading the tokenizer of a folder that has a `tokenizer.json` is said in a sentence.

    Raises:
        InvalidWeights: the tokenizer cannot be read.
    """
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_file(str(folder / "tokenizer.json"))  # some classes make up an empty one instead
        yield
    except Exception as error:  # of tokenizers, a bare Exception
        raise InvalidWeights(
            f"expected a whole tokenizer in {folder / 'tokenizer.json'} and the files beside it; it cannot be read "
            f"({error}). Copy or save it again, or remove these files to load the model without."
        ) from error


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Loading bars and reports of Hugging Face, off."""
    logging = transformers.utils.logging
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
