"""The `smolvlm` backbone: a pretrained SmolVLM or SmolVLM2 from a local folder, read layer by layer by the same head.

    words -> pieces (B, 1 + L * M) --> token embeddings ---+
    images (B, K, 3, P, P) -> vision tower -> connector ---+-> first N layers of the language model, causal
    state (B, S) -> token; learned action queries ---------+      | hidden states of every layer

SmolVLM: Marafioti et al. 2025 (2504.05299). Taking its first layers only: SmolVLA, Shukor et al. 2025 (2506.01844).
Learned action queries read layer by layer: VLA-Adapter (2509.09372). Words stand before the pictures, so that in a
causal model what a picture token says depends on the words; state and queries stand last and see everything.

The interface keeps its closed vocabulary of words: `pieces` holds each word's tokens in the checkpoint's own tokenizer,
so that data, language check and runtime are the same for every backbone. Nothing is downloaded, nothing is unpickled.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PretrainedConfig

from vla_ros.policy.manifest import PolicyInvalid, refuse_pickles
from vla_ros.policy.model import NAMED, ModelConfig
from vla_ros.policy.tokenizer import PAD, UNKNOWN

KINDS = ("smolvlm", "idefics3")  # model_type of SmolVLM2 and of the first SmolVLM
SOURCES = "vlm"  # folder beside a policy's weights: what is needed to build it again, without the pretrained weights
EMPTY = -1  # in `pieces`: no token
HIDE = -1e4  # added to a score


def read_config(folder: Path, layers: int) -> PretrainedConfig:
    """The checkpoint's sizes, cut down to `layers` of its language model. Raises PolicyInvalid."""
    if not (folder / "config.json").is_file():
        raise PolicyInvalid(f"{folder}: no config.json; model.vlm must be the folder of a SmolVLM checkpoint")
    refuse_pickles(folder)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise PolicyInvalid(f"{folder / 'config.json'}: not readable ({error})") from error
    if config.model_type not in KINDS:
        raise PolicyInvalid(
            f"{folder / 'config.json'}: model_type is {config.model_type!r}, allowed: {', '.join(KINDS)}"
        )
    if not layers <= config.text_config.num_hidden_layers:
        raise PolicyInvalid(
            f"{folder / 'config.json'}: has {config.text_config.num_hidden_layers} layers, model.layers = {layers}"
        )
    config.text_config.num_hidden_layers = layers
    config.text_config.use_cache = False
    return config


def read_normalisation(folder: Path) -> tuple[list[float], list[float]]:
    """Mean and deviation of each colour, 0..1, that the vision tower was trained with."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            facts = json.loads((folder / name).read_text())
            facts = facts.get("image_processor", facts)
            if "image_mean" in facts and "image_std" in facts:
                return facts["image_mean"], facts["image_std"]
    raise PolicyInvalid(
        f"{folder}: no preprocessor_config.json with image_mean and image_std; copy the whole checkpoint"
    )


class SmolVlm(nn.Module):
    """Same results as `model.Backbone`, `width` wide. Weights are random until `load_pretrained` or a state dict."""

    word_rows = "pieces"

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.folder = Path(c.vlm)
        self.config = read_config(self.folder, c.layers)
        self.vlm = AutoModel.from_config(self.config, attn_implementation="sdpa")
        vision, text = self.config.vision_config, self.config.text_config
        self.width, self.pixels = text.hidden_size, vision.image_size
        side = self.pixels // vision.patch_size // self.config.scale_factor
        self.seen_tokens = c.cameras * side**2
        self.state = nn.Sequential(
            nn.Linear(c.state_dim, 2 * self.width), nn.ReLU(), nn.Linear(2 * self.width, self.width)
        )
        self.cameras = nn.Parameter(torch.randn(1, c.cameras, 1, self.width) * 0.02)  # tells the pictures apart
        self.queries = nn.Parameter(torch.randn(1, c.action_queries, self.width) * 0.02)
        self.peaks = nn.Linear(self.width, NAMED)  # where the named things are, over the picture tokens
        mean, std = read_normalisation(self.folder)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("pieces", torch.full((c.vocabulary, c.word_pieces), EMPTY))
        self.register_buffer("first", torch.zeros(1, dtype=torch.long))  # the token that begins every text

    @property
    def learned(self) -> nn.Module:
        """What is pretrained: `--tune head` leaves it alone, `--tune lora` adapts it."""
        return self.vlm

    # ------------------------------------------------------------------------------------------ from the folder

    def learn_words(self, words: Sequence[str]) -> None:
        """Fill `pieces`: every word as it is cut up inside a running text. Raises PolicyInvalid for one too long."""
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise PolicyInvalid(f"{self.folder}: no tokenizer ({error}); copy the whole checkpoint") from error
        begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        self.first.fill_(begin or 0)
        self.pieces.fill_(EMPTY)
        for i, word in enumerate(words):
            if i == PAD:
                continue
            if i == UNKNOWN:  # refused before it gets here; any token will do
                self.pieces[i, 0] = self.first[0]
                continue
            ids = tokenizer(" " + word, add_special_tokens=False)["input_ids"]
            if not 1 <= len(ids) <= self.pieces.shape[1]:
                raise PolicyInvalid(
                    f"{self.folder}: {word!r} becomes {len(ids)} tokens, allowed: 1 to {self.pieces.shape[1]}; "
                    "raise model.word_pieces"
                )
            self.pieces[i, : len(ids)] = torch.tensor(ids)

    def load_pretrained(self) -> None:
        """The checkpoint's weights, of the layers that are used; safetensors only."""
        try:
            self.vlm = AutoModel.from_pretrained(
                self.folder,
                config=self.config,
                attn_implementation="sdpa",
                dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise PolicyInvalid(f"{self.folder}: weights are not readable ({error}); safetensors only") from error

    def save_sources(self, folder: Path) -> None:
        """Put the small files that build this backbone beside a policy's weights."""
        target = folder / SOURCES
        target.mkdir(parents=True, exist_ok=True)
        for path in sorted(self.folder.glob("*.json")):
            if "safetensors.index" not in path.name and path.resolve() != (target / path.name).resolve():
                shutil.copy2(path, target / path.name)

    # ------------------------------------------------------------------------------------------ the computation

    def see(self, images: Tensor) -> Tensor:
        """(G, K, 3, P, P) about -1..1 -> picture tokens (G, K, T, width)."""
        G, K = images.shape[:2]
        x = F.interpolate(images.flatten(0, 1), size=(self.pixels, self.pixels), mode="bilinear", align_corners=False)
        x = ((x + 1) / 2 - self.mean) / self.std  # (G*K, 3, pixels, pixels)
        x = self.vlm.connector(self.vlm.vision_model(pixel_values=x).last_hidden_state)  # (G*K, T, width)
        return x.unflatten(0, (G, K)) + self.cameras[:, :, :]  # (G, K, T, width)

    def point(self, images: Tensor, ids: Tensor, state: Tensor, picture: Tensor | None = None) -> Tensor:
        """(B, K, NAMED, cells) logits alone. In a causal model they do not depend on the state."""
        return self(images, ids, state, picture)[2]

    def forward(
        self, images: Tensor, ids: Tensor, state: Tensor, picture: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """As `model.Backbone.forward`; per layer (B, N + 1 + Q, width), cells are the picture tokens of one camera."""
        B, K = ids.shape[0], images.shape[1]
        pieces = self.pieces[ids].flatten(1)  # (B, L * M)
        missing = F.pad(pieces == EMPTY, (1, 0))  # (B, 1 + L * M), the first is there
        tokens = torch.cat([self.first.expand(B, 1), pieces.clamp(min=0)], dim=1)
        words = self.vlm.text_model.get_input_embeddings()(tokens)  # (B, 1 + L * M, width)
        seen = self.see(images)  # (G, K, T, width)
        if picture is not None:
            seen = seen[picture]  # (B, K, T, width)
        token = self.state(state)[:, None]  # (B, 1, width)
        x = torch.cat([words, seen.flatten(1, 2), token, self.queries.expand(B, -1, -1)], dim=1)
        N = x.shape[1]
        hidden = F.pad(missing, (0, N - missing.shape[1])).to(x.dtype)[:, None, None, :] * HIDE  # (B, 1, 1, N)
        later = torch.ones(N, N, dtype=x.dtype, device=x.device).triu(1) * HIDE  # (N, N)
        out = self.vlm.text_model(inputs_embeds=x, attention_mask=hidden + later, output_hidden_states=True)
        layers = list(out.hidden_states[1:])  # N x (B, N, width), the last one normed
        pictures = layers[-1][:, words.shape[1] : words.shape[1] + seen.shape[1] * seen.shape[2]]
        named = self.peaks(pictures).unflatten(1, (K, -1)).transpose(2, 3)  # (B, K, NAMED, T)
        return layers, hidden, named
