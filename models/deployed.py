"""One member as one self-contained module: raw windows and masks in, its error out, without midwatch around it.

What the engine does in numba and in shared kernels (scaling, windows with gaps, aggregation) is written here in torch
operations that `torch.export` understands, window by window and without a data-dependent shape. `models.export`
holds the two against each other.

Legend: B windows, w rows of the member's window, C channels, D = w * C readings, k components.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.aggregation import MAD_FLOOR, Z_LIMIT, ZTOP_LEAST, ZTOP_SHARE
from models.engine_t_squared import need_q
from models.fitted_members import Principal, fitted_aggregation, principal
from models.reconstruction import reconstruction
from pipeline.bundle import Bundle

_FLOAT32_MAX = torch.finfo(torch.float32).max


class DeployedMember(nn.Module):
    """A member of one group, from readings in input units to its error before the smoother.

    Raises
    ------
    BundleError : tensors that are missing, or do not fit the member.
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, bundle: Bundle, group: int, index: int) -> None:
        super().__init__()
        spec = bundle.members[index]
        need_q(spec, "an exported program")
        self._whole, self._limit = spec.error == "window", float(bundle.soft_clip)
        self._channels = len(bundle.channels)
        for name in ("loc", "scale"):
            self.register_buffer(name, torch.tensor(bundle.tensor(group, "scaler", name), dtype=torch.float64))
        fitted = {n: torch.from_numpy(a) for n, a in fitted_aggregation(bundle, group, index).items()}
        last = spec.window * self._channels if self._whole else self._channels
        self._rebuild: nn.Module = (
            _Principal(principal(bundle, group, index), last)
            if spec.kind == "pca"
            else _Network(reconstruction(bundle, group, index))
        )
        self._aggregate = _AGGREGATES[spec.aggregate](fitted)

    def forward(self, x: Tensor, observed: Tensor) -> dict[str, Tensor]:
        """Score windows, oldest row first.

        Parameters
        ----------
        x : (B, w, C) float32, input units; what is not observed is never looked at.
        observed : (B, w, C) bool.

        Returns
        -------
        `expected` (B, C) float32, the last row as it should be, in input units; `residual` (B, C) float32, scaled, 0
        where `weight` (B, C) float32, the readings it rests on, is 0; `error` (B,) float64, NaN where nothing that
        counts was observed.
        """
        scaled = torch.where(observed, _soft_clip((x.double() - self.loc) / self.scale, self._limit), 0.0).float()
        back = self._rebuild(scaled.flatten(1), observed.flatten(1))
        last = back[:, -self._channels :].double()
        seen = observed if self._whole else observed[:, -1:]
        off = torch.where(
            seen, (scaled if self._whole else scaled[:, -1:]) - back.view(-1, seen.shape[1], self._channels), 0.0
        )
        weight = seen.sum(1).float()
        residual = (off.square().sum(1) / weight.clamp(min=1)).sqrt() if self._whole else off[:, 0]
        expected = (_soft_unclip(last, self._limit) * self.scale + self.loc).clamp(-_FLOAT32_MAX, _FLOAT32_MAX)
        error = torch.where(weight.sum(1) > 0, self._aggregate(residual.double(), weight.double()), torch.nan)
        return {"expected": expected.float(), "residual": residual, "weight": weight, "error": error}


class _Network(nn.Module):
    """Any autoencoder: what is not observed came in as 0, and nothing else is to be done about it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, _: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


class _Principal(nn.Module):
    """Principal components given the observed readings, in float64 (`models.engine_gaps` has the equations).

    A batch without a gap is projected and nothing is solved; in one with gaps every window is.
    """

    mean: Tensor
    components: Tensor
    ridge: Tensor

    def __init__(self, found: Principal, last: int) -> None:
        super().__init__()
        self._last = last
        self.register_buffer("mean", torch.from_numpy(found.mean).double())
        self.register_buffer("components", torch.from_numpy(found.components).double())
        self.register_buffer("ridge", torch.from_numpy(found.ridge))

    def forward(self, x: Tensor, observed: Tensor) -> Tensor:
        """(B, D), (B, D) -> (B, last)."""
        projected = torch.where(observed, x.double() - self.mean, 0.0) @ self.components.t()
        found: Tensor = torch.cond(observed.all(), _projected, self._given_observed, (projected, observed))
        back: Tensor = found @ self.components[:, -self._last :] + self.mean[-self._last :]
        return back.float()

    def _given_observed(self, projected: Tensor, observed: Tensor) -> Tensor:
        seen = self.components * observed[:, None].double()
        factor = torch.linalg.cholesky(seen @ self.components.t() + torch.diag(self.ridge))
        given = torch.cholesky_solve(projected[..., None], factor)[..., 0]
        return torch.where(observed.all(1, keepdim=True), projected, given)


def _projected(projected: Tensor, observed: Tensor) -> Tensor:
    return projected.clone()  # a branch may not return what it was given


class _MeanSquare(nn.Module):
    def __init__(self, _: dict[str, Tensor]) -> None:
        super().__init__()

    def forward(self, residual: Tensor, weight: Tensor) -> Tensor:
        return (weight * residual.square()).sum(1) / weight.sum(1)


class _TopZ(nn.Module):
    """Mean of the largest eighth of robust z, over the channels that are known."""

    median: Tensor
    mad: Tensor

    def __init__(self, fitted: dict[str, Tensor]) -> None:
        super().__init__()
        self.register_buffer("median", fitted["median"])
        self.register_buffer("mad", fitted["mad"].clamp(min=MAD_FLOOR))

    def forward(self, residual: Tensor, weight: Tensor) -> Tensor:
        z = ((residual.abs() - self.median) / self.mad).clamp(0, Z_LIMIT)
        largest = torch.where(weight > 0, z, -1.0).sort(1, descending=True).values
        seen = (weight > 0).sum(1, keepdim=True)
        top = torch.minimum(seen, (seen // ZTOP_SHARE).clamp(min=ZTOP_LEAST))
        counts = torch.arange(largest.shape[1], device=largest.device) < top
        return torch.where(counts, largest, 0.0).sum(1) / top[:, 0]


class _Mahalanobis(nn.Module):
    """Distance under the marginal covariance of the known channels: the others take the values they would have."""

    location: Tensor
    precision: Tensor

    def __init__(self, fitted: dict[str, Tensor]) -> None:
        super().__init__()
        for name in ("location", "precision"):
            self.register_buffer(name, fitted[name])

    def forward(self, residual: Tensor, weight: Tensor) -> Tensor:
        known = (weight > 0).double()
        hidden = 1 - known
        d = (residual - self.location) * known
        inner = self.precision * hidden[:, :, None] * hidden[:, None] + torch.diag_embed(known)
        d = d - torch.linalg.solve(inner, (d @ self.precision.t()) * hidden)
        square: Tensor = ((d @ self.precision.t()) * d).sum(1)
        return (square.clamp(min=0) * residual.shape[1] / known.sum(1)).sqrt()


_AGGREGATES = {"mse": _MeanSquare, "ztop": _TopZ, "mahalanobis": _Mahalanobis}


def _soft_clip(z: Tensor, limit: float) -> Tensor:
    size = z.abs()
    return torch.where(size <= limit, z, z.sign() * limit * (1 + (size.clamp(min=limit) / limit).log()))


def _soft_unclip(v: Tensor, limit: float) -> Tensor:
    size = v.abs()
    return torch.where(size <= limit, v, v.sign() * limit * (size.clamp(min=limit) / limit - 1).exp())
