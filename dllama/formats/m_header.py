"""The header of ``.m`` model files: pairs of int32 (key, value), or nine bare int32 in the oldest files.

Bytes in, ``ModelConfig`` and raw facts out; nothing here reads a file or knows where tensors lie.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from dllama.config import MAX_LAYERS, DType, LayerSpec, ModelConfig, QkNorm, RopeScaling
from dllama.errors import BadFile, UnsupportedModel

MAGIC = 0x0A00ABCD
OLD_LLAMA_MAGIC, OLD_MOE_MAGIC = 0xABCD00, 0xABCD01
_MAX_PAIRS = 1024  # far above the known keys, small enough to read before anything is checked
_FIRST_OWN_KEY = 1000  # distributed-llama numbers its keys from 0 to 21
_RUNS = "a Llama, Qwen3 or Qwen3 MoE model, which dllama runs"
MOST_CONFIG_BYTES = 1 << 20  # of JSON: that of 100 layers, all different, takes some thousand


class Arch(IntEnum):
    """Architecture ids. Before distributed-llama 0.12 the second and third meant Grok-1 and Mixtral, both MoE.

    OWN is ours: what the model is stands in JSON behind the keys, and rows lie in Hugging Face's order.
    """

    LLAMA = 0xABCD00
    QWEN3 = 0xABCD01
    QWEN3_MOE = 0xABCD02
    OWN = 0xD11A00


class RopeType(IntEnum):
    """How the file's q and k rows are ordered, and whether Llama-3.1 scaling was meant."""

    LLAMA = 0  # interleaved pairs
    FALCON = 1  # halves, as Hugging Face has them
    LLAMA3_1 = 2  # interleaved pairs, scaled frequencies

    @property
    def title(self) -> str:
        """The name that distributed-llama prints."""
        return {RopeType.LLAMA: "Llama", RopeType.FALCON: "Falcon", RopeType.LLAMA3_1: "Llama3.1"}[self]


class Key(IntEnum):
    """Header keys, named after what they hold here; the numbers are distributed-llama's."""

    version = 0
    arch_type = 1
    hidden_size = 2
    intermediate_size = 3
    num_layers = 4
    num_heads = 5
    num_kv_heads = 6
    num_experts = 7
    num_experts_per_tok = 8
    vocab_size = 9
    max_seq_len = 10
    hidden_act = 11
    rope_theta = 12
    weight_type = 13
    rope_scaling_factor = 14
    rope_low_freq_factor = 15
    rope_high_freq_factor = 16
    rope_original_max_seq_len = 17
    rope_type = 18
    head_dim = 19
    rms_norm_eps = 20
    moe_intermediate_size = 21
    config_bytes = 1000  # of JSON between the keys and the first tensor


_LAST_PEER_KEY = Key.moe_intermediate_size
# The nine values of the oldest header, in file order.
_OLD_KEYS = (
    Key.hidden_size,
    Key.intermediate_size,
    Key.num_layers,
    Key.num_heads,
    Key.num_kv_heads,
    Key.num_experts,
    Key.num_experts_per_tok,
    Key.vocab_size,
    Key.max_seq_len,
)
OLD_HEADER_SIZE = 4 + 4 * len(_OLD_KEYS)
_DEFAULTS = {
    Key.version: 0,
    Key.num_experts: 0,
    Key.num_experts_per_tok: 0,
    Key.hidden_act: 1,
    Key.rope_theta: 10000,
    Key.rope_scaling_factor: 1,
    Key.rope_low_freq_factor: 0,
    Key.rope_high_freq_factor: 0,
    Key.rope_original_max_seq_len: 0,
    Key.rope_type: RopeType.LLAMA,
    Key.rms_norm_eps: 5,
    Key.moe_intermediate_size: 0,
}
EPS_OF_CODE = {5: 1e-5, 6: 1e-6}  # the file holds the exponent
_MODEL_TYPES = {Arch.LLAMA: "llama", Arch.QWEN3: "qwen3", Arch.QWEN3_MOE: "qwen3_moe"}


@dataclass(frozen=True, slots=True)
class MHeader:
    """A header's values as stored, with the byte at which each lies.

    Attributes:
        path: The file, for messages.
        size: Bytes before the first tensor.
        values: Value of each key that the file holds.
        offsets: Byte of each value in the file.
    """

    path: str
    size: int
    values: Mapping[Key, int]
    offsets: Mapping[Key, int] = field(default_factory=dict)

    def __getitem__(self, key: Key) -> int:
        """Value of a key, or its default; BadFile when the key is needed and absent."""
        value = self.values.get(key, _DEFAULTS.get(key))
        if value is None:
            raise BadFile(self.path, "header", f"key {key.value} ({key.name})", "a header without it")
        return value

    def place(self, key: Key) -> str:
        """Where the value of ``key`` lies, for messages."""
        if key not in self.offsets:
            return f"header key {key.value} ({key.name}, absent)"
        return f"byte {self.offsets[key]} (header key {key.value}, {key.name})"

    def bad(self, key: Key, expected: str, found: object | None = None) -> BadFile:
        """Build the error for the value of ``key``."""
        return BadFile(self.path, self.place(key), expected, str(self[key] if found is None else found))

    def unsupported(self, key: Key, found: str, expected: str = _RUNS) -> UnsupportedModel:
        """Build the error for a model that is recognised and cannot be run."""
        return UnsupportedModel(self.path, self.place(key), expected, found)

    @property
    def arch(self) -> Arch:
        """The architecture."""
        value = self[Key.arch_type]
        if value not in set(Arch):
            raise self.bad(Key.arch_type, "one of " + ", ".join(f"0x{arch:X}" for arch in Arch), f"0x{value:X}")
        return Arch(value)

    @property
    def rope_type(self) -> RopeType:
        """The rotary layout; Qwen3 files always hold halves, whatever they say."""
        if self.arch is not Arch.LLAMA:
            return RopeType.FALCON
        if self[Key.rope_type] not in set(RopeType):
            raise self.bad(Key.rope_type, "0, 1 or 2")
        return RopeType(self[Key.rope_type])

    @property
    def is_interleaved(self) -> bool:
        """Whether rows of q and k lie as interleaved pairs; a Llama file may say halves, though no converter does."""
        return self.rope_type is not RopeType.FALCON

    @property
    def head_dim(self) -> int:
        """Size of a head; hidden_size / num_heads in files that do not say."""
        if Key.head_dim in self.values:
            return self.values[Key.head_dim]
        hidden_size, num_heads = self[Key.hidden_size], self[Key.num_heads]
        if num_heads < 1 or hidden_size % num_heads:
            raise self.bad(Key.num_heads, f"a divisor of hidden_size={hidden_size}, as there is no head_dim")
        return hidden_size // num_heads


def parse_header(path: str, raw: bytes) -> MHeader:
    """Parse a current header.

    Args:
        path: The file, for messages.
        raw: The whole header, its first 8 bytes (magic and size) included.

    Raises:
        BadFile: A key is unknown or given twice.
    """
    values: dict[Key, int] = {}
    offsets: dict[Key, int] = {}
    for index, (number, value) in enumerate(struct.iter_unpack("<ii", raw[8:])):
        place = f"byte {8 + 8 * index}"
        if number not in set(Key):
            if number >= _FIRST_OWN_KEY:
                found = f"key {number}; a newer dllama can read it"
                raise BadFile(path, place, "keys that this version knows", found)
            raise BadFile(path, place, f"a header key from 0 to {_LAST_PEER_KEY.value}", f"key {number}")
        key = Key(number)
        if key in values:
            raise BadFile(path, place, "every header key once", f"key {number} ({key.name}) again")
        values[key], offsets[key] = value, 12 + 8 * index
    return MHeader(path, len(raw), values, offsets)


def parse_old_header(path: str, raw: bytes) -> MHeader:
    """Parse the ``OLD_HEADER_SIZE`` bytes of an old header. It holds no weight type: see ``with_weight_type``."""
    magic, *values = struct.unpack(f"<{1 + len(_OLD_KEYS)}i", raw)
    if magic == OLD_MOE_MAGIC:
        found = "an old Grok-1 or Mixtral file (mixture of experts)"
        raise UnsupportedModel(path, "byte 0 (magic number)", _RUNS, found)
    offsets = {key: 4 + 4 * index for index, key in enumerate(_OLD_KEYS)}
    stored = dict(zip(_OLD_KEYS, values, strict=True))
    return MHeader(path, len(raw), {Key.arch_type: Arch.LLAMA, **stored}, offsets)


def with_weight_type(header: MHeader, weight_type: DType) -> MHeader:
    """Give the same header with a weight type."""
    return MHeader(header.path, header.size, {**header.values, Key.weight_type: weight_type}, header.offsets)


def header_size(raw: bytes, path: str, file_size: int) -> int:
    """Give the size that a current header states in its first 8 bytes, checked against the file.

    Raises:
        BadFile: The size is not that of a header, or more than the file holds.
    """
    size: int = struct.unpack_from("<i", raw, 4)[0]
    if size < 8 or size % 8 or size > 8 + 8 * _MAX_PAIRS:
        raise BadFile(path, "byte 4 (header size)", f"8 plus 8 per key, at most {_MAX_PAIRS} keys", str(size))
    if size > file_size:
        raise BadFile(path, "byte 4 (header size)", f"at most the file's {file_size} bytes", str(size))
    return size


def config_of(header: MHeader) -> ModelConfig:
    """Give the model that a header describes, every size checked.

    Raises:
        BadFile: A value is missing, out of range, or does not fit the others.
        UnsupportedModel: The header is sound, and of a model that dllama cannot run.
    """
    _check_family(header)
    num_layers, weight_type = header[Key.num_layers], header[Key.weight_type]
    if header[Key.rms_norm_eps] not in EPS_OF_CODE:
        raise header.bad(Key.rms_norm_eps, "5 or 6 (for 1e-05 or 1e-06)")
    if weight_type not in set(DType):
        raise header.bad(Key.weight_type, ", ".join(f"{t.value} ({t.name})" for t in DType))
    layer = LayerSpec(
        qk_norm=QkNorm.NONE if header.arch is Arch.LLAMA else QkNorm.HEAD,
        has_experts=header.arch is Arch.QWEN3_MOE,
    )
    config = ModelConfig(
        model_type=_MODEL_TYPES[header.arch],
        hidden_size=header[Key.hidden_size],
        intermediate_size=header[Key.intermediate_size],
        num_layers=num_layers,
        num_heads=header[Key.num_heads],
        num_kv_heads=header[Key.num_kv_heads],
        head_dim=header.head_dim,
        vocab_size=header[Key.vocab_size],
        max_seq_len=header[Key.max_seq_len],
        rms_norm_eps=EPS_OF_CODE[header[Key.rms_norm_eps]],
        rope_theta=float(header[Key.rope_theta]),
        weight_type=DType(weight_type),
        # No more specs than any model may have layers: the number is not yet checked.
        layers=(layer,) * min(max(num_layers, 0), MAX_LAYERS),
        rope_scaling=_rope_scaling(header),
        num_experts=header[Key.num_experts],
        num_experts_per_tok=header[Key.num_experts_per_tok] if layer.has_experts else 0,
        moe_intermediate_size=header[Key.moe_intermediate_size] if layer.has_experts else 0,
    )
    _check_sizes(header, config)
    return config


def config_size(header: MHeader) -> int:
    """Give the bytes of JSON behind the keys of an ``Arch.OWN`` file; BadFile if the header cannot be one."""
    _check_version(header)
    foreign = header.values.keys() - {Key.version, Key.arch_type, Key.config_bytes}
    if foreign:
        raise header.bad(min(foreign), "no such key, as the config is JSON")
    if not 1 <= header[Key.config_bytes] <= MOST_CONFIG_BYTES:
        raise header.bad(Key.config_bytes, f"1 to {MOST_CONFIG_BYTES}")
    return header[Key.config_bytes]


def _check_version(header: MHeader) -> None:
    if header[Key.version] != 0:
        raise header.bad(Key.version, "0")


def _check_family(header: MHeader) -> None:
    _check_version(header)
    if Key.config_bytes in header.values:
        raise header.bad(Key.config_bytes, f"no such key in a file of {header.arch.name}")
    if header.arch is Arch.QWEN3_MOE:
        if Key.moe_intermediate_size not in header.values:
            raise header.unsupported(Key.arch_type, "a Mixtral file of a distributed-llama before 0.16")
    elif header[Key.num_experts] != 0:
        kind = "Mixtral" if header.arch is Arch.LLAMA else "Grok-1"
        found = f"{header[Key.num_experts]} experts: {kind} (mixture of experts)"
        raise header.unsupported(Key.num_experts, found)
    # distributed-llama prints this value and computes SiLU whatever it says. The file knows better: with SiLU the
    # model would answer, and wrongly.
    if header[Key.hidden_act] == 0:
        raise header.unsupported(Key.hidden_act, "GELU", "the activation SiLU, which dllama runs")
    if header[Key.hidden_act] != 1:
        raise header.bad(Key.hidden_act, "1 (SiLU)")


def _rope_scaling(header: MHeader) -> RopeScaling | None:
    """Give the Llama-3.1 scaling; as in distributed-llama the factor alone decides whether there is any."""
    factor = header[Key.rope_scaling_factor]
    if factor == 1:
        return None
    if factor < 1:
        raise header.bad(Key.rope_scaling_factor, "1 or more")
    if header.rope_type is RopeType.FALCON:
        raise header.bad(Key.rope_scaling_factor, f"1, as there is no scaling with {header.rope_type.title} rotation")
    low, high = header[Key.rope_low_freq_factor], header[Key.rope_high_freq_factor]
    if low < 0:
        raise header.bad(Key.rope_low_freq_factor, "0 or more")
    if high <= low:
        raise header.bad(Key.rope_high_freq_factor, f"more than rope_low_freq_factor={low}")
    if header[Key.rope_original_max_seq_len] < 1:
        raise header.bad(Key.rope_original_max_seq_len, "1 or more")
    return RopeScaling(float(factor), float(low), float(high), header[Key.rope_original_max_seq_len])


def _check_sizes(header: MHeader, config: ModelConfig) -> None:
    problem = config.problem()
    if problem is None:
        return
    name = problem.name
    place = header.place(Key[name]) if name in Key.__members__ else f"header ({name})"
    raise BadFile(header.path, place, problem.expected, problem.found)
