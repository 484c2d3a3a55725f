"""Text towers of the transformers library: their sizes, checked, and where they come from.

open_clip's configuration names such a tower by its repository; its sizes are in that repository's
``config.json``. Only the sizes are taken over, into ``text_cfg.transformers``, so that a stored model is
complete and nothing else in such a file is ever used.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from refiner_cli.core.towers.hub_access import download_hub_file
from refiner_cli.core.towers.library_messages import first_line, quiet_libraries
from refiner_cli.errors import ConfigError, EnvironmentLacksError

LIBRARY_CONFIG = "config.json"
SIZES = "transformers"  # the key of text_cfg
INSTALL = "Run: pip install transformers sentencepiece"

TextWidth = Annotated[int, Field(ge=1, le=16_384)]
Count = Annotated[int, Field(ge=1, le=256)]
Rows = Annotated[int, Field(ge=4, le=1_000_000)]
TokenId = Annotated[int, Field(ge=0, le=1_000_000)]
Epsilon = Annotated[float, Field(gt=0, le=1)]
Activation = Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,40}$")]


class Sizes(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    vocab_size: Rows
    pad_token_id: TokenId

    def build_config(self) -> dict[str, Any]:
        """The content of a config.json that builds the encoder and nothing else."""
        return self.model_dump()


class BertSizes(Sizes):
    """BERT, RoBERTa, XLM-R."""

    model_type: Literal["bert", "roberta", "xlm-roberta"]
    hidden_size: TextWidth
    num_hidden_layers: Count
    num_attention_heads: Count
    intermediate_size: Annotated[int, Field(ge=1, le=65_536)]
    hidden_act: Activation
    max_position_embeddings: Rows
    type_vocab_size: Annotated[int, Field(ge=1, le=1_000)]
    layer_norm_eps: Epsilon

    @property
    def depth(self) -> int:
        return self.num_hidden_layers

    def parameters(self) -> float:
        """About how many parameters the tower has."""
        rows = self.vocab_size + self.max_position_embeddings + self.type_vocab_size
        block = 4 * self.hidden_size**2 + 2 * self.hidden_size * self.intermediate_size
        return rows * self.hidden_size + self.depth * block


class MT5Sizes(Sizes):
    """The encoder of mT5."""

    model_type: Literal["mt5"]
    d_model: TextWidth
    d_kv: TextWidth
    d_ff: Annotated[int, Field(ge=1, le=65_536)]
    num_layers: Count
    num_heads: Count
    feed_forward_proj: Activation
    relative_attention_num_buckets: Annotated[int, Field(ge=4, le=4_096)]
    relative_attention_max_distance: Annotated[int, Field(ge=4, le=65_536)]
    layer_norm_epsilon: Epsilon

    @property
    def depth(self) -> int:
        return self.num_layers

    def parameters(self) -> float:
        """About how many parameters the tower has."""
        block = 4 * self.d_model * self.d_kv * self.num_heads + 3 * self.d_model * self.d_ff
        return self.vocab_size * self.d_model + self.depth * block

    def build_config(self) -> dict[str, Any]:
        return {**self.model_dump(), "num_decoder_layers": 0}


class M2M100Sizes(Sizes):
    """The encoder of M2M100 and NLLB."""

    model_type: Literal["m2m_100"]
    d_model: TextWidth
    encoder_layers: Count
    encoder_attention_heads: Count
    encoder_ffn_dim: Annotated[int, Field(ge=1, le=65_536)]
    activation_function: Activation
    max_position_embeddings: Rows
    scale_embedding: bool

    @property
    def depth(self) -> int:
        return self.encoder_layers

    def parameters(self) -> float:
        """About how many parameters the tower has."""
        block = 4 * self.d_model**2 + 2 * self.d_model * self.encoder_ffn_dim
        return self.vocab_size * self.d_model + self.depth * block

    def build_config(self) -> dict[str, Any]:
        return {**self.model_dump(), "decoder_layers": 0}


TextSizes = Annotated[BertSizes | MT5Sizes | M2M100Sizes, Field(discriminator="model_type")]
SIZES_BY_KIND: dict[str, type[BertSizes] | type[MT5Sizes] | type[M2M100Sizes]] = {
    "bert": BertSizes, "roberta": BertSizes, "xlm-roberta": BertSizes, "mt5": MT5Sizes,
    "m2m_100": M2M100Sizes,
}  # fmt: skip


def with_sizes(config: dict[str, Any]) -> dict[str, Any]:
    """A model configuration with the sizes of its text tower, if that is one of the transformers library.

    Raises:
        EnvironmentLacksError: transformers is not installed.
        FetchError: the tower's configuration cannot be downloaded.
        ConfigError: it cannot be read, or the tower is of an unknown kind.
    """
    text = config["text_cfg"]
    name = text.get("hf_model_name")
    if not name or SIZES in text:
        return config
    require_transformers(f"The text tower {name}")
    folder = Path(name)
    file = folder / LIBRARY_CONFIG if folder.is_dir() else download_hub_file(name, LIBRARY_CONFIG)
    sizes = read_sizes(file)
    return {**config, "custom_text": True, "text_cfg": {**text, SIZES: sizes.model_dump()}}


def require_transformers(what: str) -> None:
    """Raises EnvironmentLacksError if the transformers library is not installed."""
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise EnvironmentLacksError(
            f"{what} needs the package transformers ({first_line(error)}).", hint=INSTALL
        ) from None


def read_sizes(file: Path) -> BertSizes | MT5Sizes | M2M100Sizes:
    """The sizes in a config.json of the transformers library, whose defaults stand for what it leaves out.

    Raises:
        ConfigError: the file cannot be read, or the tower is of an unknown kind or an impossible size.
    """
    from transformers import AutoConfig

    try:
        kind = json.loads(file.read_text("utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(f"The configuration {file} cannot be read ({first_line(error)}).") from None
    if kind not in SIZES_BY_KIND:
        raise ConfigError(
            f"{file} describes a text tower of the kind {kind!r}, which open_clip cannot use.",
            hint=f"Kinds: {', '.join(SIZES_BY_KIND)}.",
        )
    try:
        with quiet_libraries():
            content = AutoConfig.from_pretrained(str(file), trust_remote_code=False).to_dict()
    except Exception as error:  # noqa: BLE001 - the library's configurations raise many kinds
        raise ConfigError(f"The configuration {file} cannot be read ({first_line(error)}).") from None
    if content.get("position_embedding_type", "absolute") != "absolute":
        raise ConfigError(f"The text tower of {file} has position embeddings of an unknown type.")
    wanted = SIZES_BY_KIND[kind]
    return parse_sizes({key: content.get(key) for key in wanted.model_fields}, str(file))


def parse_sizes(content: Any, source: str) -> BertSizes | MT5Sizes | M2M100Sizes:
    """Checked sizes. Raises ConfigError naming the key."""
    adapter: TypeAdapter[BertSizes | MT5Sizes | M2M100Sizes] = TypeAdapter(TextSizes)
    try:
        return adapter.validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"][1:]) or "the content"
        raise ConfigError(f"{source} has an impossible {key}: {first['msg'].lower()}.") from None


@contextmanager
def buildable(text: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    """A text configuration that open_clip builds without the network and without weights of its own.

    Raises:
        EnvironmentLacksError: transformers is not installed.
        ConfigError: the sizes are missing or impossible.
    """
    if "hf_model_name" not in text:
        yield text
        return
    require_transformers(f"The text tower of the backbone {name}")
    sizes = parse_sizes(text.get(SIZES), f"text_cfg.{SIZES} of the backbone {name}")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / LIBRARY_CONFIG).write_text(json.dumps(sizes.build_config()), "utf-8")
        kept = {key: value for key, value in text.items() if key != SIZES}
        yield {**kept, "hf_model_name": folder, "hf_model_pretrained": False}
