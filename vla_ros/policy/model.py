"""The `nano` vision-language-action model: one file, in reading order.

    text ids (B, L) ----> TextEncoder -----+--------- summary (B, C): asks the fine map, gates the coarse (FiLM)
    images (G, K, P, P, 3) -> CameraStem --+-> Backbone: bidirectional transformer over text, camera, state, queries
    state (B, S) ---------------------------+      | hidden states of every layer
    noise (B, D, R, A) ------------------> Head: one block per backbone layer, bridge attention -> velocity (B, D, R, A)

Letters: B batch of sentences, G pictures they are about, L text tokens, K cameras, P pixels, S state features, R rows
and A columns of the action chunk, D noise draws that share one backbone pass, C width, H heads, E = C / H, N tokens,
Q action queries.

Where the pieces come from: FiLM, Perez et al. 2018 (1709.07871) and OpenVLA-OFT (2502.19645); spatial softmax
keypoints, Levine et al. 2016 (1504.00702); bridge attention with action queries, VLA-Adapter (2509.09372), here with
the gate AFTER the raw branch's own softmax, so that a closed gate is exactly closed; adaLN, DiT (2212.09748); flow
matching with noise at time 0 and data at time 1 (2210.02747, as in pi0, 2410.24164); the clean prefix, training-time
real-time chunking.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vla_ros.policy.objectives import OBJECTIVES

if TYPE_CHECKING:
    from vla_ros.policy.smolvlm import SmolVlm

READ_SHARPER = 4.0  # factor on the logits before a position is read from them; a choice
SHARPEST = 5.0  # log of the largest weight of an expectation: a standard deviation of 0.8 cells of 28
NAMED = 2  # keypoints that training ties to something: the named object and its destination


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes of one model. Images are uint8 rgb, channel last; actions inside are normalised (see `Policy`)."""

    vocabulary: int = 96  # words, with padding (0) and unknown (1)
    text_tokens: int = 20  # L
    cameras: int = 2  # K, each with its own stem
    image_px: int = 112  # P
    state_dim: int = 17  # S, vla_ros.policy.features
    rows: int = 16  # R
    cols: int = 7  # A
    width: int = 128  # C
    heads: int = 4  # H
    layers: int = 3  # backbone layers = head blocks
    mlp_ratio: int = 3  # of the backbone; the head uses 2
    action_queries: int = 8  # Q
    stem: tuple[int, int, int, int] = (32, 48, 64, 96)
    keypoints: int = 32  # per camera
    keypoint_tokens: int = 8  # per camera
    patch_grid: int = 4  # patch_grid^2 pooled patch tokens per camera
    film: bool = True  # words steer what the cameras see; off only for the ablation
    naming: str = "words"  # the named points: each word finds its own cells, or the sentence's summary asks
    names: tuple[int, ...] = ()  # ids of words that only tell things apart; naming = words: nothing else hears them
    expect: bool = False  # a further camera is told where to expect what the first one found
    gate_init: float = 0.1  # g of the bridge: the raw branch is multiplied by tanh(g)
    bridge: str = "all"  # what the head reads: a layer per block (all), the last, or pooled: for the ablation
    objective: str = "flow"  # flow, ddim, l1 or mip: vla_ros.policy.objectives
    prediction: str = "v"  # what the head of `ddim` answers with: v or epsilon
    steps: int = 5  # denoising steps at run time (flow, ddim)
    action_space: str = "tool_delta"  # columns of a row, as in msg/ActionChunk: tool_delta or joint_position
    prefix_max: int = 6  # longest clean prefix seen in training [rows]
    backbone: str = "nano"  # nano (this file) or smolvlm (vla_ros.policy.smolvlm), whose first `layers` are used
    vlm: str = ""  # folder of a SmolVLM or SmolVLM2 checkpoint; smolvlm only
    word_pieces: int = 4  # longest word, in that checkpoint's tokens; smolvlm only

    @classmethod
    def stored(cls, sizes: dict[str, Any]) -> ModelConfig:
        """From JSON. Settings that are newer than the file have their defaults, but for `naming`: before there was a
        choice, the summary asked. Raises TypeError for a setting that is not known."""
        sizes = {"naming": "summary", **sizes}
        return cls(**sizes | {key: tuple(sizes.get(key, ())) for key in ("stem", "names")})

    def validate(self) -> None:
        """Raises ValueError with every entry that cannot work."""
        positive = (
            "vocabulary",
            "text_tokens",
            "cameras",
            "image_px",
            "state_dim",
            "rows",
            "cols",
            "width",
            "heads",
            "layers",
            "mlp_ratio",
            "action_queries",
            "keypoints",
            "keypoint_tokens",
            "patch_grid",
            "steps",
            "word_pieces",
        )
        wrong = [
            f"model.{name} = {getattr(self, name)!r}: must be at least 1"
            for name in positive
            if not getattr(self, name) >= 1
        ]
        for name, allowed in (
            ("objective", tuple(OBJECTIVES)),
            ("prediction", ("v", "epsilon")),
            ("action_space", ("tool_delta", "joint_position")),
            ("backbone", ("nano", "smolvlm")),
            ("bridge", ("all", "last", "pooled")),
            ("naming", ("words", "summary")),
        ):
            if getattr(self, name) not in allowed:
                wrong.append(f"model.{name} = {getattr(self, name)!r}: allowed are {', '.join(allowed)}")
        if self.heads >= 1 and self.width % self.heads:
            wrong.append(f"model.width = {self.width}: must be a multiple of heads = {self.heads}")
        if self.image_px % 8:
            wrong.append(f"model.image_px = {self.image_px}: must be a multiple of 8")
        if not all(0 <= word < self.vocabulary for word in self.names):
            wrong.append(f"model.names = {self.names!r}: ids of words, 0..vocabulary - 1 = {self.vocabulary - 1}")
        if not 0 <= self.prefix_max < self.rows:
            wrong.append(f"model.prefix_max = {self.prefix_max}: must lie in 0..rows - 1 = {self.rows - 1}")
        if (self.backbone == "smolvlm") != bool(self.vlm):
            wrong.append(f"model.vlm = {self.vlm!r}: the folder of a checkpoint with backbone smolvlm, else empty")
        if wrong:
            raise ValueError("; ".join(wrong))


# ------------------------------------------------------------------------------------------------ attention


def split_heads(x: Tensor, heads: int) -> Tensor:
    B, N, C = x.shape
    return x.view(B, N, heads, C // heads).transpose(1, 2)  # (B, H, N, E)


def merge_heads(x: Tensor) -> Tensor:
    B, H, N, E = x.shape
    return x.transpose(1, 2).reshape(B, N, H * E)  # (B, N, C)


class Block(nn.Module):
    """Pre-norm transformer layer, bidirectional. `bias` (B, 1, 1, N) is added to the scores: 0 keeps, -1e4 hides."""

    def __init__(self, width: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, mlp_ratio * width), nn.ReLU(), nn.Linear(mlp_ratio * width, width))

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        q, k, v = self.qkv(self.norm_attention(x)).chunk(3, dim=-1)  # 3 x (B, N, C)
        q, k, v = (split_heads(t, self.heads) for t in (q, k, v))  # 3 x (B, H, N, E)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)  # (B, H, N, E)
        x = x + self.out(merge_heads(y))  # (B, N, C)
        return x + self.mlp(self.norm_mlp(x))


# ------------------------------------------------------------------------------------------------ language


@dataclasses.dataclass
class Sentence:
    """What the words say. `roles`: how much a word says about each NAMED point, from its place in the sentence; `bare`:
    the word by itself. Only the two together find the points, so that a colour and a shape that were never said
    together find what is both (naming = words). A word that only tells things apart, a colour, is heard in `bare`
    alone: to all the rest it sounds like any other such word, so nothing can be learned of a pair but where it is."""

    words: Tensor  # (B, L, C), each word in its sentence
    summary: Tensor  # (B, C)
    hidden: Tensor  # (B, L), -1e4 where there is no word
    bare: Tensor  # (B, L, C)
    roles: Tensor | None  # (B, NAMED, L), shares of one; None where the summary names


class TextEncoder(nn.Module):
    """Word ids -> one feature per word, and one summary that steers the camera stems."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.words = nn.Embedding(c.vocabulary, c.width)
        self.places = nn.Parameter(torch.randn(1, c.text_tokens, c.width) * 0.02)
        self.block = Block(c.width, c.heads, 2)
        self.pool = nn.Linear(c.width, 1)
        self.roles = nn.Linear(c.width, NAMED) if c.naming == "words" else None
        self.names = list(c.names) if c.naming == "words" else []
        named = torch.zeros(c.vocabulary, 1)
        named[self.names] = 1.0
        self.register_buffer("named", named, persistent=False)  # (vocabulary, 1), 1 for the words that name
        nn.init.normal_(self.words.weight, std=0.5)  # words must differ from the first step on: FiLM depends on it

    def forward(self, ids: Tensor) -> Sentence:
        hidden = (ids == 0).to(self.places.dtype) * -1e4  # (B, L), 0 is padding
        bare = self.words(ids)  # (B, L, C)
        said = bare
        if self.names:
            said = torch.lerp(bare, self.words.weight[self.names].mean(0), self.named[ids])
        x = self.block(said + self.places, hidden[:, None, None, :])  # (B, L, C)
        weight = (self.pool(x).squeeze(-1) + hidden).softmax(-1)  # (B, L)
        summary = (weight[:, :, None] * x).sum(1)  # (B, C)
        roles = (self.roles(x) + hidden[:, :, None]).softmax(1).transpose(1, 2) if self.roles else None
        return Sentence(x, summary, hidden, bare, roles)  # roles (B, NAMED, L)


# ------------------------------------------------------------------------------------------------ vision


def conv(c_in: int, c_out: int, size: int, stride: int) -> nn.Sequential:
    """Convolution -> batch norm (folded away at export) -> ReLU."""
    return nn.Sequential(nn.Conv2d(c_in, c_out, size, stride, size // 2, bias=False), nn.BatchNorm2d(c_out), nn.ReLU())


class Film(nn.Module):
    """1x1 convolution -> batch norm -> per-channel scale and shift from the text -> ReLU."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.film = nn.Linear(width, 2 * channels)
        nn.init.normal_(self.film.weight, std=0.5 / math.sqrt(width))
        nn.init.zeros_(self.film.bias)

    def forward(self, x: Tensor, summary: Tensor) -> Tensor:
        x = self.norm(self.conv(x))  # (B, c, P', P')
        scale, shift = self.film(summary)[:, :, None, None].chunk(2, dim=1)  # 2 x (B, c, 1, 1)
        return F.relu(x * (1 + scale) + shift)


class CameraStem(nn.Module):
    """One camera: image -> fine and coarse map -> with the words, keypoint tokens (where the fine map answers the
    questions that the words ask, and how strongly) and pooled patch tokens.

    The convolutions know no words, so that all sentences about one picture share them: with words in every layer a
    sample cost twice as much and taught no more (docs/decisions.md)."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        s0, s1, s2, s3 = c.stem
        side = c.image_px // 4
        # Two small strides, not one of 4: the things to tell apart are seven pixels wide in the scene camera.
        self.stem1 = conv(3, 24, 5, 2)
        self.stem2 = nn.Sequential(nn.Conv2d(24, s0, 3, 2, 1, bias=False), nn.BatchNorm2d(s0))
        self.place = nn.Conv2d(2, s0, 1)  # coordinate channels; linear, so added instead of concatenated
        self.fine = nn.Sequential(conv(s0, s1, 3, 1), conv(s1, s2, 3, 1))
        self.coarse = nn.Sequential(conv(s2, s3, 3, 2), conv(s3, s2, 3, 1))
        self.coarse_film = Film(s2, c.width)
        points = NAMED + c.keypoints
        by_word = c.naming == "words"
        self.ask = nn.Linear(c.width, (c.keypoints if by_word else points) * s2)  # one query for every keypoint
        self.ask_word = nn.Linear(c.width, s2) if by_word else None
        nn.init.normal_(self.ask.weight, std=1.0 / math.sqrt(c.width))
        nn.init.normal_(self.ask.bias, std=0.3)
        self.film, self.channels = c.film, s2
        self.sharpness = nn.Parameter(torch.full((points, 1), 1.0))
        self.keypoint_tokens = nn.Linear(3 * points, c.keypoint_tokens * c.width)
        self.patch_tokens = nn.Linear(s2, c.width)
        self.grid, self.tokens, self.width = c.patch_grid, c.keypoint_tokens, c.width
        axis = torch.linspace(-1, 1, side)
        coordinates = torch.stack(torch.meshgrid(axis, axis, indexing="xy"))  # (2, P/4, P/4): x right, y down
        self.register_buffer("coordinates", coordinates[None], persistent=False)

    def see(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, P, P) -> fine map (B, s2, P/4, P/4) and coarse map (B, s2, P/8, P/8). No words: sentences share it."""
        x = self.stem2(self.stem1(image))  # (B, s0, P/4, P/4)
        fine = self.fine(F.relu(x + self.place(self.coordinates)))  # (B, s2, P/4, P/4)
        coarse = self.coarse(fine)  # (B, s2, P/8, P/8)
        return fine + F.interpolate(coarse, scale_factor=2.0, mode="nearest"), coarse

    def heat(self, asked: Tensor, fine: Tensor, coarse: Tensor) -> Tensor:
        """How strongly each cell of the fine map answers each question: (B, T, s2) -> (B, T, cells)."""
        return asked @ fine.flatten(2)

    def name(self, sentence: Sentence, fine: Tensor, coarse: Tensor) -> Tensor:
        """(B, NAMED, cells): logits of the named points. Every word says of each cell how badly it fits, by itself, and
        the words of a point add up: a cell must fit them all. No word can speak for a cell more than "fits" (0)."""
        asked = self.ask_word(sentence.bare) / math.sqrt(self.channels)  # (B, L, s2)
        fits = -F.softplus(-self.heat(asked, fine, coarse).float())  # (B, L, cells), log sigmoid
        return sentence.roles.float() @ fits

    def forward(
        self, fine: Tensor, coarse: Tensor, sentence: Sentence, expected: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Maps as `see` gives them, one for each sentence; what an Expectation gives.
        -> tokens (B, N, C), logits over the cells of the fine map of the NAMED points (B, NAMED, cells),
        and where those points are in the picture and how sure that is (B, 3 * NAMED)."""
        summary = sentence.summary if self.film else torch.zeros_like(sentence.summary)
        asked = self.ask(summary).view(summary.shape[0], -1, self.channels) / math.sqrt(self.channels)  # (B, T, s2)
        heat = self.heat(asked, fine, coarse).float()  # (B, T, P/4 * P/4)
        if self.ask_word is not None:
            heat = torch.cat([self.name(sentence, fine, coarse), heat], dim=1)
        coarse = self.coarse_film(coarse, summary)  # (B, s2, P/8, P/8)
        top = torch.tanh(heat.amax(-1) / 8)  # (B, T), squashed: it would drown the rest
        heat = heat * self.sharpness
        if expected is not None:
            heat = torch.cat([heat[:, :NAMED] + expected, heat[:, NAMED:]], dim=1)
        weight = heat.softmax(-1)
        xy = weight @ self.coordinates.flatten(2)[0].float().T  # (B, T, 2)
        seen = torch.cat([xy.flatten(1), top], dim=1)  # (B, 3T)
        points = self.keypoint_tokens(seen).view(-1, self.tokens, self.width)  # (B, tokens, C)
        side = coarse.shape[-1]
        stride = side // self.grid
        patches = F.avg_pool2d(coarse, side - (self.grid - 1) * stride, stride)  # (B, s2, grid, grid)
        patches = self.patch_tokens(patches.flatten(2).transpose(1, 2))  # (B, grid^2, C)
        # Read where the named points are with a sharper softmax than the one that is taught: a plain mean over cells
        # that might be meant lies between the objects, on none of them.
        sharp = (READ_SHARPER * heat[:, :NAMED]).softmax(-1)  # (B, NAMED, cells)
        where = sharp @ self.coordinates.flatten(2)[0].float().T  # (B, NAMED, 2)
        named = torch.cat([where.flatten(1), sharp.amax(-1)], dim=1)  # (B, 3 * NAMED)
        return torch.cat([points, patches], dim=1), heat[:, :NAMED], named  # (B, N, C), (B, NAMED, cells)


# ------------------------------------------------------------------------------------------------ backbone


@dataclasses.dataclass
class Memory:
    """What the head reads: keys and values of every backbone layer, computed once per observation."""

    near: list[tuple[Tensor, Tensor]]  # per block: action queries and state, keys and values (B, H, Q + 1, E)
    raw: list[tuple[Tensor, Tensor]]  # per block: text and camera tokens (B, H, N, E)
    hidden: Tensor  # (B, 1, 1, N), -1e4 where a raw token is padding
    pooled: Tensor  # (B, C)
    named: Tensor  # (B, K, NAMED, cells), logits of where the named things are in each picture


class Expectation(nn.Module):
    """Where a further camera should see what the first one found, from where the arm is: a round Gaussian.

    A thing that is held above its base hides the base from the wrist camera, not from the scene camera."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        found = c.state_dim + 3 * NAMED
        self.guess = nn.Sequential(
            nn.Linear(found, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 3 * NAMED)
        )
        nn.init.normal_(self.guess[-1].weight, std=0.01)
        nn.init.zeros_(self.guess[-1].bias)  # the middle of the picture, hardly preferred

    def forward(self, state: Tensor, found: Tensor, coordinates: Tensor) -> Tensor:
        """state (B, S) normalised, found (B, 3 * NAMED), coordinates (1, 2, P/4, P/4) -> (B, NAMED, cells), added to
        the logits of the NAMED points."""
        guess = self.guess(torch.cat([state, found], dim=1)).view(-1, NAMED, 3).float()
        off = coordinates.flatten(2)[:, None] - guess[..., :2, None]  # (B, NAMED, 2, cells)
        sharp = guess[..., 2:].clamp(max=SHARPEST).exp()
        return -sharp * off.square().sum(2)


class Backbone(nn.Module):
    """Fuses text, cameras and state in one bidirectional transformer; gives the hidden states of every layer."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.text = TextEncoder(c)
        self.cameras = nn.ModuleList(CameraStem(c) for _ in range(c.cameras))
        self.expect = nn.ModuleList(Expectation(c) for _ in range(c.cameras - 1)) if c.expect else None
        # The state token also carries where the named points are: what to move and where to, side by side.
        self.state = nn.Sequential(
            nn.Linear(c.state_dim + 3 * NAMED * c.cameras, 2 * c.width), nn.ReLU(), nn.Linear(2 * c.width, c.width)
        )
        self.seen_tokens = c.cameras * (c.keypoint_tokens + c.patch_grid**2)
        self.places = nn.Parameter(torch.randn(1, self.seen_tokens + 1, c.width) * 0.02)
        self.queries = nn.Parameter(torch.randn(1, c.action_queries, c.width) * 0.5)
        self.blocks = nn.ModuleList(Block(c.width, c.heads, c.mlp_ratio) for _ in range(c.layers))
        self.width, self.word_rows = c.width, "text.words.weight"

    @property
    def learned(self) -> nn.Module:
        """What `--tune head` leaves alone and `--tune lora` adapts."""
        return self

    def look(
        self, images: Tensor, sentence: Sentence, state: Tensor, picture: Tensor | None
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """images (G, K, 3, P, P), B sentences -> what each CameraStem gives. `picture` (B,): which of the G images
        each sentence is about; None where there is one sentence for each."""
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        for k, stem in enumerate(self.cameras):
            fine, coarse = stem.see(images[:, k])
            if picture is not None:
                fine, coarse = fine[picture], coarse[picture]
            expected = None
            if found and self.expect is not None:
                expected = self.expect[k - 1](state, found[0][2], stem.coordinates)
            found.append(stem(fine, coarse, sentence, expected))
        return found

    def point(self, images: Tensor, ids: Tensor, state: Tensor, picture: Tensor | None = None) -> Tensor:
        """(B, K, NAMED, cells) logits alone: without the transformer, for the first stage of training."""
        return torch.stack([named for _, named, _ in self.look(images, self.text(ids), state, picture)], dim=1)

    def forward(
        self, images: Tensor, ids: Tensor, state: Tensor, picture: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """images (G, K, 3, P, P) about -1..1, ids (B, L), state (B, S) normalised, picture (B,) or None: see `look`.
        -> per layer (B, N + 1 + Q, C), ordered raw tokens, state, queries; (B, 1, 1, N + 1 + Q) to hide padding;
        and (B, K, NAMED, cells), see CameraStem."""
        sentence = self.text(ids)
        seen, named, where = zip(*self.look(images, sentence, state, picture), strict=True)
        token = self.state(torch.cat([state, *where], dim=1))[:, None]  # (B, 1, C)
        rest = torch.cat([*seen, token], dim=1) + self.places
        queries = self.queries.expand(ids.shape[0], -1, -1)  # (B, Q, C)
        x = torch.cat([sentence.words, rest, queries], dim=1)  # (B, L + seen + 1 + Q, C)
        bias = F.pad(sentence.hidden, (0, rest.shape[1] + queries.shape[1]))[:, None, None, :]
        layers = []
        for block in self.blocks:
            x = block(x, bias)
            layers.append(x)
        return layers, bias, torch.stack(named, dim=1)


# ------------------------------------------------------------------------------------------------ head


class BridgeBlock(nn.Module):
    """Rows of the chunk read each other, then action queries and state, then the raw tokens behind the gate.

    Three softmaxes; only the OUTPUT of the raw branch is multiplied by tanh(g). (The released VLA-Adapter code
    multiplies the logits inside one softmax, where a closed gate still leaves the raw tokens most of the weight.)"""

    def __init__(self, c: ModelConfig, memory: int) -> None:
        super().__init__()
        self.heads = c.heads
        self.norm_attention = nn.LayerNorm(c.width, elementwise_affine=False)
        self.qkv = nn.Linear(c.width, 3 * c.width)
        self.norm_memory = nn.LayerNorm(memory)
        self.kv_near = nn.Linear(memory, 2 * c.width)
        self.kv_raw = nn.Linear(memory, 2 * c.width)
        self.gate = nn.Parameter(torch.tensor(float(c.gate_init)))
        self.out = nn.Linear(c.width, c.width)
        self.norm_mlp = nn.LayerNorm(c.width, elementwise_affine=False)
        self.mlp = nn.Sequential(nn.Linear(c.width, 2 * c.width), nn.ReLU(), nn.Linear(2 * c.width, c.width))
        self.modulation = nn.Linear(c.width, 6 * c.width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def read(self, layer: Tensor, raw_tokens: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Hidden states of one backbone layer (B, N + 1 + Q, its width) -> keys and values of both branches."""
        x = self.norm_memory(layer)
        k_near, v_near = self.kv_near(x[:, raw_tokens:]).chunk(2, dim=-1)  # 2 x (B, 1 + Q, C)
        k_raw, v_raw = self.kv_raw(x[:, :raw_tokens]).chunk(2, dim=-1)  # 2 x (B, N, C)
        return (
            (split_heads(k_near, self.heads), split_heads(v_near, self.heads)),
            (split_heads(k_raw, self.heads), split_heads(v_raw, self.heads)),
        )

    def forward(
        self, x: Tensor, time: Tensor, near: tuple[Tensor, Tensor], raw: tuple[Tensor, Tensor], hidden: Tensor
    ) -> Tensor:
        """x (B, D, R, C), time (B, D, C) or (1, 1, C)."""
        B, D, R, C = x.shape
        modulation = self.modulation(time)[:, :, None]  # (B, D, 1, 6C)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)  # 6 x (B, D, 1, C)
        y = self.norm_attention(x) * (1 + scale1) + shift1
        q, k, v = self.qkv(y).chunk(3, dim=-1)  # 3 x (B, D, R, C)
        q_all = split_heads(q.reshape(B, D * R, C), self.heads)  # (B, H, D*R, E), draws share keys
        own = F.scaled_dot_product_attention(*(split_heads(t.reshape(B * D, R, C), self.heads) for t in (q, k, v)))
        own = merge_heads(own).view(B, D, R, C)
        from_near = merge_heads(F.scaled_dot_product_attention(q_all, *near)).view(B, D, R, C)
        from_raw = merge_heads(F.scaled_dot_product_attention(q_all, *raw, attn_mask=hidden)).view(B, D, R, C)
        x = x + (1 + gate1) * self.out(own + from_near + torch.tanh(self.gate) * from_raw)
        return x + (1 + gate2) * self.mlp(self.norm_mlp(x) * (1 + scale2) + shift2)


class Head(nn.Module):
    """Noisy chunk and time -> what the objective asks for. One bridge block per backbone layer, `memory` wide."""

    def __init__(self, c: ModelConfig, memory: int) -> None:
        super().__init__()
        self.width = c.width
        self.enter = nn.Linear(c.cols, c.width)
        self.row = nn.Parameter(torch.randn(1, 1, c.rows, c.width) * 0.5)  # without it all rows come out equal
        self.clean = nn.Parameter(torch.randn(c.width) * 0.5)  # marks the rows of a committed prefix
        self.time = nn.Sequential(nn.Linear(64, c.width), nn.SiLU(), nn.Linear(c.width, c.width), nn.SiLU())
        self.blocks = nn.ModuleList(BridgeBlock(c, memory) for _ in range(c.layers))
        self.norm = nn.LayerNorm(c.width)
        self.leave = nn.Linear(c.width, c.cols)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)
        self.register_buffer("frequency", torch.exp(torch.linspace(0, math.log(1000.0), 32)), persistent=False)

    def forward(self, x: Tensor, tau: Tensor, memory: Memory, prefix: Tensor | None = None) -> Tensor:
        """x (B, D, R, A), tau (B, D) or (1, 1) -> velocity (B, D, R, A).
        prefix (B, 1, R, 1) bool marks clean rows: their flow time is 1, told to them by their own embedding."""
        angle = tau[..., None] * self.frequency  # (B, D, 32)
        time = self.time(torch.cat([angle.sin(), angle.cos()], dim=-1))  # (B, D, C)
        x = self.enter(x) + self.row  # (B, D, R, C)
        if prefix is not None:
            x = x + prefix.to(x.dtype) * self.clean
        for block, near, raw in zip(self.blocks, memory.near, memory.raw, strict=True):
            x = block(x, time, near, raw, memory.hidden)
        return self.leave(self.norm(x))  # (B, D, R, A)


# ------------------------------------------------------------------------------------------------ the whole


def make_backbone(c: ModelConfig) -> Backbone | SmolVlm:
    """Both give `width`, `word_rows`, `learned`, `point` and `forward` of the same meaning."""
    if c.backbone == "smolvlm":
        from vla_ros.policy.smolvlm import SmolVlm  # transformers takes seconds to import

        return SmolVlm(c)
    return Backbone(c)


class Policy(nn.Module):
    """Backbone, head and small outputs, with the statistics that turn physical units into model units and back."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        c.validate()
        self.config = c
        self.objective = OBJECTIVES[c.objective](c)
        self.backbone = make_backbone(c)
        memory = self.backbone.width
        self.head = Head(c, memory)
        self.summary = nn.LayerNorm(memory)
        self.where_object = nn.Linear(memory, 3)  # training only: named object minus tool [m, scaled]
        self.where_target = nn.Linear(memory, 3)  # training only: destination minus tool
        self.done = nn.Sequential(nn.Linear(memory, 64), nn.ReLU(), nn.Linear(64, 1))
        self.sure = nn.Sequential(nn.Linear(memory, 64), nn.ReLU(), nn.Linear(64, 1))
        self.register_buffer("state_mean", torch.zeros(c.state_dim))
        self.register_buffer("state_std", torch.ones(c.state_dim))
        self.register_buffer("action_mean", torch.zeros(c.rows, c.cols))
        self.register_buffer("action_std", torch.ones(c.rows, c.cols))

    def point(self, images: Tensor, ids: Tensor, state: Tensor, picture: Tensor | None = None) -> Tensor:
        """images (G, K, 3, P, P) about -1..1, the rest as in `observe` -> (B, K, NAMED, cells), see Memory."""
        return self.backbone.point(images, ids, (state - self.state_mean) / self.state_std, picture)

    def observe(self, images: Tensor, ids: Tensor, state: Tensor, picture: Tensor | None = None) -> Memory:
        """images (B, K, P, P, 3) uint8, or (B, K, 3, P, P) float already scaled; ids (B, L); state (B, S) physical.
        With `picture` (B,) there may be fewer images: the index of the one that each sentence is about."""
        if images.dtype == torch.uint8:
            images = images.permute(0, 1, 4, 2, 3).float() / 127.5 - 1.0  # (B, K, 3, P, P)
        return self.understand(images, ids, state, picture)

    def understand(self, images: Tensor, ids: Tensor, state: Tensor, picture: Tensor | None) -> Memory:
        """What the head reads of pictures as the backbone's camera stems take them."""
        layers, hidden, named = self.backbone(images, ids, (state - self.state_mean) / self.state_std, picture)
        raw_tokens = layers[0].shape[1] - 1 - self.config.action_queries
        pooled = self.summary(layers[-1][:, raw_tokens:].mean(1))  # (B, C)
        if self.config.bridge != "all":
            layers = [layers[-1]] * len(layers)
        if self.config.bridge == "pooled":  # one feature, as in TinyVLA (2409.12514); both branches read it
            seen = (hidden[:, 0, 0, :, None] > -1.0).to(layers[0].dtype)  # (B, N + 1 + Q, 1), 0 for padding
            mean = (layers[0] * seen).sum(1, keepdim=True) / seen.sum(1, keepdim=True)  # (B, 1, C)
            layers, hidden, raw_tokens = [mean.expand(-1, 2, -1)] * len(layers), torch.zeros_like(hidden[..., :1]), 1
        near, raw = [], []
        for block, layer in zip(self.head.blocks, layers, strict=True):
            block_near, block_raw = block.read(layer, raw_tokens)
            near.append(block_near)
            raw.append(block_raw)
        return Memory(near, raw, hidden[..., :raw_tokens], pooled, named)

    def normalise(self, chunk: Tensor) -> Tensor:
        return (chunk - self.action_mean) / self.action_std

    def denormalise(self, chunk: Tensor) -> Tensor:
        return chunk * self.action_std + self.action_mean

    def sample(
        self,
        memory: Memory,
        noise: Tensor,
        steps: int | None = None,
        prefix_rows: Tensor | None = None,
        prefix: Tensor | None = None,
    ) -> Tensor:
        """noise (B, R, A) -> chunk (B, R, A), normalised, as the objective does it in `steps` (default: the config's).
        `prefix_rows` (B, R, A) with `prefix` (B, 1, R, 1) bool fixes the leading rows to a committed motion."""
        return self.objective.sample(self.head, memory, noise, steps or self.config.steps, prefix_rows, prefix)

    def forward(
        self,
        images: Tensor,
        ids: Tensor,
        state: Tensor,
        noise: Tensor,
        prefix: Tensor | None = None,
        prefix_rows: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One inference: chunk (B, R, A) in physical units, done probability (B,), confidence (B,).
        `prefix` (B, R, A) physical, of which the first `prefix_rows` (B,) rows are given, 0..prefix_max."""
        memory = self.observe(images, ids, state)
        given = None
        if prefix is not None and prefix_rows is not None:
            row = torch.arange(self.config.rows, device=noise.device)
            given = (row < prefix_rows[:, None])[:, None, :, None]  # (B, 1, R, 1)
            prefix = self.normalise(prefix)
        chunk = self.denormalise(self.sample(memory, noise, None, prefix, given))
        return chunk, self.done(memory.pooled)[:, 0].sigmoid(), self.sure(memory.pooled)[:, 0].sigmoid()
