"""Quantisation after training: layers of few bits, calibrated on the states of the model's own runs.

    states = fk.quant.CalibrationSet.from_trajectory(denoiser, plan, shape=(1, 8, 8), n=1024, label=labels)
    small = fk.quant.quantize(denoiser, states)                    # 8 bits, by int8 kernels on a CPU
    x_0 = fk.sample(small, x_1, plan, label=labels)

A quantised denoiser is a denoiser: any solver, guidance or cache takes it.
"""

from fokker.quant.calibrate import CalibrationSet
from fokker.quant.layers import Quantised
from fokker.quant.quantize import quantised, quantize, size

__all__ = ["CalibrationSet", "Quantised", "quantised", "quantize", "size"]
