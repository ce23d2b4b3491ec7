"""Fusion models in torch, exported with a dynamic batch: which stages they fall into, and that nothing changes."""

from __future__ import annotations

import pytest
import torch
from builders import partition_and_compare, random_feed, torch_graph
from torch import nn

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def encoder(size: int, width: int = 6) -> nn.Module:
    return nn.Sequential(nn.Linear(size, 9), nn.ReLU(), nn.Linear(9, width), nn.Tanh())


class TwoEncoders(nn.Module):
    """An image and an audio encoder; subclasses join them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 6)
        )
        self.audio = nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 6))
        self.head = nn.Linear(6, 3)

    def forward(self, image: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        return self.head(self.join(self.image(image), self.audio(audio)))

    def join(self, image: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


IMAGE_AUDIO = {"image": torch.randn(2, 3, 8, 8), "audio": torch.randn(2, 5)}


class Concat(TwoEncoders):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, 3)

    def join(self, image, audio):
        return torch.cat([image, audio], dim=1)


class WeightedSum(TwoEncoders):
    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([0.3, 1.2]))

    def join(self, image, audio):
        weights = torch.softmax(self.weights, dim=0)
        return weights[0] * image + weights[1] * audio


class Gating(TwoEncoders):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(6, 6)

    def join(self, image, audio):
        return image * torch.sigmoid(self.gate(audio))


class Bilinear(TwoEncoders):
    def __init__(self) -> None:
        super().__init__()
        self.bilinear = nn.Bilinear(6, 6, 6)

    def join(self, image, audio):
        return self.bilinear(image, audio)


class OuterProduct(TwoEncoders):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(36, 3)

    def join(self, image, audio):
        return (image.unsqueeze(2) * audio.unsqueeze(1)).flatten(1)


@pytest.mark.parametrize(
    ("model", "kinds"),
    [
        (Concat, ["concat"]),
        (WeightedSum, ["weighted sum"]),
        (Gating, ["gate"]),
        (OuterProduct, ["bilinear"]),
    ],
)
def test_two_encoders_and_one_join(model, kinds):
    graph = torch_graph(model(), IMAGE_AUDIO)

    stages = partition_and_compare(graph, random_feed(graph, batch=1), random_feed(graph, batch=5))

    assert [(s.name, s.role) for s in stages.stages] == [
        ("image", "encoder"),
        ("audio", "encoder"),
        ("fusion", "fusion head"),
    ]
    assert [j.kind for j in stages.joins] == kinds
    assert stages.joins[0].sources == ("image", "audio")
    assert {(e.producer, e.consumer) for e in stages.edges} == {("image", "fusion"), ("audio", "fusion")}
    assert len(stages.edges) == 2
    assert stages.notes == ()


def test_bilinear():
    graph = torch_graph(Bilinear(), IMAGE_AUDIO)

    stages = partition_and_compare(graph, random_feed(graph, batch=1), random_feed(graph, batch=5))

    assert [s.name for s in stages.stages] == ["image", "audio", "fusion"]
    assert "bilinear" in {j.kind for j in stages.joins}


class CrossAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.text = nn.Embedding(20, 16)
        self.image = nn.Conv2d(3, 16, 4, stride=4)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 3)

    def forward(self, input_ids: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        text = self.text(input_ids)
        patches = self.image(image).flatten(2).transpose(1, 2)
        attended, _ = self.attention(text, patches, patches, need_weights=False)
        return self.head(self.norm(text + attended).mean(1))


def test_cross_attention():
    example = {"input_ids": torch.randint(0, 20, (2, 7)), "image": torch.randn(2, 3, 16, 16)}
    graph = torch_graph(CrossAttention(), example, {"input_ids": "text", "image": "image"})

    stages = partition_and_compare(graph, random_feed(graph, batch=1), random_feed(graph, batch=5))

    assert [s.name for s in stages.stages] == ["text", "image", "fusion"]
    kinds = [j.kind for j in stages.joins]
    assert kinds.count("attention") == 2  # q·k and softmax·v
    assert "add" in kinds  # the residual
    # the projections of q, k and v belong to the encoders, so a cached encoder saves them
    assert stages.stage("image").parameters > 16 * 3 * 16


class DepthPainting(nn.Module):
    """A camera encoder whose second half reads depth from lidar."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
        self.lift = nn.Sequential(nn.Conv2d(5, 4, 3, padding=1), nn.ReLU())
        self.radar = nn.Linear(4, 4)
        self.head = nn.Linear(8, 2)

    def forward(self, camera: torch.Tensor, lidar: torch.Tensor, radar: torch.Tensor) -> torch.Tensor:
        depth = torch.log1p(lidar.abs())
        lifted = self.lift(torch.cat([self.stem(camera), depth], 1)).mean((2, 3))
        return self.head(torch.cat([lifted, self.radar(radar)], 1))


def test_camera_encoder_that_reads_lidar_depth():
    example = {"camera": torch.randn(2, 3, 6, 6), "lidar": torch.randn(2, 1, 6, 6), "radar": torch.randn(2, 4)}
    graph = torch_graph(DepthPainting(), example)

    stages = partition_and_compare(graph, random_feed(graph, batch=1), random_feed(graph, batch=4))

    assert {s.name: s.modalities for s in stages.stages} == {
        "camera": ("camera",),
        "lidar": ("lidar",),
        "radar": ("radar",),
        "camera+lidar": ("camera", "lidar"),
        "camera+lidar+radar": ("camera", "lidar", "radar"),
    }
    assert {s.role for s in stages.stages[:3]} == {"encoder"}
    assert {s.role for s in stages.stages[3:]} == {"fusion head"}
    assert [j.stage for j in stages.joins] == ["camera+lidar", "camera+lidar+radar"]


class SharedEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = encoder(40)
        self.head = nn.Linear(12, 2)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([self.encoder(left), self.encoder(right)], 1))


def test_shared_encoder_is_one_stage_per_input_and_its_weights_are_not_copied():
    graph = torch_graph(SharedEncoder(), {"left": torch.randn(2, 40), "right": torch.randn(2, 40)})

    stages = partition_and_compare(graph, random_feed(graph, batch=1), random_feed(graph, batch=4))

    left, right = stages.stage("left"), stages.stage("right")
    assert left.parameters == right.parameters == 40 * 9 + 9 + 9 * 6 + 6
    shared = {v.name: v.const_value for v in left.model.graph.initializers.values()}
    assert all(shared[v.name] is v.const_value for v in right.model.graph.initializers.values())
    assert all(graph.model.graph.initializers[n].const_value is t for n, t in shared.items())


class FirstLayerJoin(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = encoder(9, 2)

    def forward(self, accel: torch.Tensor, gyro: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([accel, gyro], 1))


def test_inputs_that_join_at_the_first_layer():
    graph = torch_graph(FirstLayerJoin(), {"accel": torch.randn(2, 4), "gyro": torch.randn(2, 5)})

    stages = partition_and_compare(graph, random_feed(graph, batch=1), random_feed(graph, batch=4))

    assert [(s.name, [i.name for i in s.inputs]) for s in stages.stages] == [("fusion", ["accel", "gyro"])]
    assert stages.edges == ()
    assert [(j.kind, j.sources) for j in stages.joins] == [("concat", ("accel", "gyro"))]


def test_single_input_model_is_one_stage():
    graph = torch_graph(encoder(7), {"imu": torch.randn(2, 7)})

    stages = partition_and_compare(graph, random_feed(graph, batch=1), random_feed(graph, batch=4))

    assert [(s.name, s.role) for s in stages.stages] == [("imu", "encoder")]
    assert stages.edges == ()
    assert stages.joins == ()


class ClassToken(nn.Module):
    """Expands a learned token over the batch of another input, and pools by a length read from the shape."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.image = nn.Linear(4, 8)
        self.text = nn.Embedding(20, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, image: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        patches = self.image(image)
        token = self.token.expand(input_ids.shape[0], -1, -1)  # the batch, read off the other modality
        sequence = torch.cat([token, patches], 1)
        text = self.text(input_ids)
        positions = torch.arange(input_ids.shape[1]).to(text.dtype)
        pooled = (text * positions[None, :, None]).sum(1) / text.shape[1]
        return self.head(sequence.mean(1) + pooled.reshape(image.shape[0], -1))


def test_dynamic_batch_and_length_through_shape():
    example = {"image": torch.randn(2, 9, 4), "input_ids": torch.randint(0, 20, (2, 7))}
    dynamic = {"image": {0: "batch", 1: "patches"}, "input_ids": {0: "batch", 1: "length"}}
    graph = torch_graph(ClassToken(), example, {"input_ids": "text"}, dynamic=dynamic)
    assert "Shape" in {n.op_type for n in graph.model.graph}

    stages = partition_and_compare(
        graph,
        random_feed(graph, batch=1, patches=3, length=2),
        random_feed(graph, batch=5, patches=4, length=11),
    )

    assert [s.name for s in stages.stages] == ["image", "text", "fusion"]
    assert [i.name for i in stages.stage("image").inputs] == ["image"]
    assert [i.name for i in stages.stage("text").inputs] == ["input_ids"]
    assert stages.notes == ()


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gru = nn.GRU(4, 8, batch_first=True)
        self.image = encoder(10, 8)
        self.head = nn.Linear(16, 3)

    def forward(self, imu: torch.Tensor, image: torch.Tensor, h: torch.Tensor):
        out, h_out = self.gru(imu, h)
        return self.head(torch.cat([out[:, -1], self.image(image)], 1)), h_out


def test_gru_state_belongs_to_the_encoder_that_keeps_it():
    example = {"imu": torch.randn(2, 5, 4), "image": torch.randn(2, 10), "h": torch.zeros(1, 2, 8)}
    graph = torch_graph(
        Recurrent(),
        example,
        states=[("h", "h_out")],
        outputs=["logits", "h_out"],
        dynamic={"imu": {0: "batch"}, "image": {0: "batch"}, "h": {1: "batch"}},
    )

    stages = partition_and_compare(graph, random_feed(graph, batch=1), random_feed(graph, batch=4))

    assert [s.name for s in stages.stages] == ["imu", "image", "fusion"]
    assert "h" in [i.name for i in stages.stage("imu").inputs]
    assert "h_out" in [o.name for o in stages.stage("imu").outputs]
    assert "h_out" not in [o.name for o in stages.stage("fusion").outputs]
