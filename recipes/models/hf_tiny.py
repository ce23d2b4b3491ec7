"""Multimodal architectures of `transformers`, tiny and untrained: their graphs are real, their answers are not.

Each factory gives a module whose inputs and outputs are plain tensors, one row per sample, for
`edgemm convert weights.pt --factory recipes/models/hf_tiny.py:clip`. `sample_inputs` makes data to go with it.
Scores of a pair are computed pair by pair: the library's own `logits_per_image` compares every image with every
text of the batch, which no device wants (`clip_matrix` keeps that form, as a model that batches wrongly).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

TEXT, WORDS, IMAGE, WIDTH = 12, 200, 32, 32
_LAYERS = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_VISION = _LAYERS | {"image_size": IMAGE, "patch_size": 8}
_TEXT = _LAYERS | {"vocab_size": WORDS, "max_position_embeddings": 32}


class PairScore(nn.Module):
    """Cosine of image and text features, for CLIP and SigLIP."""

    def __init__(self, model: nn.Module, *, masked: bool) -> None:
        super().__init__()
        self.model, self.masked = model, masked

    def _score(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return nn.functional.cosine_similarity(image, text, dim=-1)


class Clip(PairScore):
    """`score` `[B]` of image and text."""

    def forward(
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Returns score and both feature vectors."""
        model = self.model
        image = model.visual_projection(model.vision_model(pixel_values).pooler_output)
        words = model.text_model(input_ids=input_ids, attention_mask=attention_mask).pooler_output
        text = model.text_projection(words)
        return {"score": self._score(image, text), "image_embeds": image, "text_embeds": text}


class ClipMatrix(nn.Module):
    """CLIP as the library returns it: every image of the batch against every text of the batch."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Returns `logits_per_image` `[B,B]`."""
        out = self.model(pixel_values=pixel_values, input_ids=input_ids, attention_mask=attention_mask)
        return {"logits_per_image": out.logits_per_image}


class Siglip(PairScore):
    """`score` `[B]` of image and text; SigLIP pads without a mask."""

    def forward(self, pixel_values: torch.Tensor, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns score and both feature vectors."""
        image = self.model.vision_model(pixel_values).pooler_output
        text = self.model.text_model(input_ids=input_ids).pooler_output
        return {"score": self._score(image, text), "image_embeds": image, "text_embeds": text}


class BlipMatching(nn.Module):
    """Whether a text describes an image: the text encoder attends to the image."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Returns `itm_score` `[B,2]`."""
        out = self.model(
            input_ids=input_ids, attention_mask=attention_mask, pixel_values=pixel_values, use_itm_head=True
        )
        return {"itm_score": out.itm_score}


class Clap(PairScore):
    """`score` `[B]` of sound and text."""

    def forward(
        self, input_features: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Returns score and both feature vectors."""
        model = self.model
        audio = model.audio_projection(model.audio_model(input_features=input_features).pooler_output)
        words = model.text_model(input_ids=input_ids, attention_mask=attention_mask).pooler_output
        text = model.text_projection(words)
        return {"score": self._score(audio, text), "audio_embeds": audio, "text_embeds": text}


class Lxmert(nn.Module):
    """Regions of an image and a sentence, through cross-modality layers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        visual_feats: torch.Tensor,
        visual_pos: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Returns `pooled_output` `[B,32]`."""
        out = self.model(
            input_ids=input_ids, attention_mask=attention_mask, visual_feats=visual_feats, visual_pos=visual_pos
        )
        return {"pooled_output": out.pooled_output}


class Whisper(nn.Module):
    """Log-mel and the words so far to the next word."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_features: torch.Tensor, decoder_input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns `logits` `[B,T,200]`."""
        out = self.model(input_features=input_features, decoder_input_ids=decoder_input_ids, use_cache=False)
        return {"logits": out.logits}


def _clip_model() -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    text = _TEXT | {"eos_token_id": WORDS - 1, "bos_token_id": 0, "pad_token_id": 1}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=_VISION, projection_dim=16))


def clip() -> nn.Module:
    """Returns a tiny CLIP; a text ends with the word id 199."""
    torch.manual_seed(0)
    return Clip(_clip_model(), masked=True).eval()


def clip_matrix() -> nn.Module:
    """Returns a tiny CLIP whose output mixes the samples of a batch."""
    torch.manual_seed(0)
    return ClipMatrix(_clip_model()).eval()


def siglip() -> nn.Module:
    """Returns a tiny SigLIP."""
    from transformers import SiglipConfig, SiglipModel

    torch.manual_seed(0)
    text = _TEXT | {"projection_size": WIDTH, "bos_token_id": 0, "eos_token_id": WORDS - 1}
    return Siglip(SiglipModel(SiglipConfig(text_config=text, vision_config=_VISION)), masked=False).eval()


def blip() -> nn.Module:
    """Returns a tiny BLIP for image-text matching."""
    from transformers import BlipConfig, BlipForImageTextRetrieval

    torch.manual_seed(0)
    text = _TEXT | {"encoder_hidden_size": WIDTH, "pad_token_id": 0, "bos_token_id": 2}
    config = BlipConfig(text_config=text, vision_config=_VISION, projection_dim=16, image_text_hidden_size=16)
    return BlipMatching(BlipForImageTextRetrieval(config)).eval()


def clap() -> nn.Module:
    """Returns a tiny CLAP."""
    from transformers import ClapConfig, ClapModel

    torch.manual_seed(0)
    audio = {
        "spec_size": 64,
        "num_mel_bins": 16,
        "patch_size": 4,
        "patch_stride": (4, 4),
        "patch_embeds_hidden_size": 16,
        "window_size": 4,
        "depths": (1, 1),
        "num_attention_heads": (2, 2),
        "hidden_size": WIDTH,
        "enable_fusion": False,
    }
    config = ClapConfig(text_config=_TEXT, audio_config=audio, projection_dim=16)
    return Clap(ClapModel(config), masked=True).eval()


def lxmert() -> nn.Module:
    """Returns a tiny LXMERT."""
    from transformers import LxmertConfig, LxmertModel

    torch.manual_seed(0)
    config = LxmertConfig(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        num_attention_heads=2,
        intermediate_size=64,
        l_layers=1,
        x_layers=1,
        r_layers=1,
        visual_feat_dim=24,
        max_position_embeddings=32,
    )
    return Lxmert(LxmertModel(config)).eval()


def whisper() -> nn.Module:
    """Returns a tiny Whisper, encoder and decoder."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=WORDS,
        num_mel_bins=20,
        d_model=WIDTH,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_source_positions=25,
        max_target_positions=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    return Whisper(WhisperForConditionalGeneration(config)).eval()


FACTORIES = {
    "clip": clip,
    "siglip": siglip,
    "blip": blip,
    "clap": clap,
    "lxmert": lxmert,
    "whisper": whisper,
}
"""Name -> factory of a model that treats every sample on its own."""


def sample_inputs(name: str, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns `count` random samples for the model called `name`: input name -> array, one row per sample.

    Texts have 12 word ids, 4 to 12 of them kept by the mask and the rest padding.
    """
    rng = np.random.default_rng(seed)

    def floats(*shape: int) -> np.ndarray:
        return rng.standard_normal((count, *shape)).astype(np.float32)

    lengths = rng.integers(4, TEXT + 1, (count, 1))
    mask = (np.arange(TEXT) < lengths).astype(np.int64)
    ids = rng.integers(3, WORDS - 1, (count, TEXT))
    ids[np.arange(count), lengths[:, 0] - 1] = WORDS - 1
    ids = np.where(mask == 1, ids, 1)
    text = {"input_ids": ids, "attention_mask": mask}
    image = {"pixel_values": floats(3, IMAGE, IMAGE)}
    return {
        "clip": image | text,
        "clip_matrix": image | text,
        "siglip": image | {"input_ids": ids},
        "blip": image | text,
        "clap": {"input_features": floats(1, 64, 16)} | text,
        "lxmert": {"visual_feats": floats(6, 24), "visual_pos": rng.random((count, 6, 4), dtype=np.float32)}
        | text,
        "whisper": {"input_features": floats(20, 50), "decoder_input_ids": ids},
    }[name]
