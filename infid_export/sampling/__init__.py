"""Samplers as tables of coefficients, and the noise schedules they are made for.

The names are here, for the command line's help: the modules need numpy.
"""

SAMPLERS = ("ddim", "euler", "dpmpp_2m", "euler_a", "lcm", "tcd")
TIMESTEP_SPACINGS = ("leading", "trailing", "linspace")
KARRAS = "karras"  # spaces noise levels; the timesteps follow from them
SPACINGS = (*TIMESTEP_SPACINGS, KARRAS)
PREDICTIONS = ("epsilon", "v_prediction", "sample")
