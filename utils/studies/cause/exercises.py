"""What must hold of the interpolation that readers write in notebook 07."""

import math

LAMBDAS = [0.0, 0.5, 1.0]
EQUAL_ACCURACY = {
    "at a target that was measured it returns that lambda":
        lambda find: math.isclose(find(LAMBDAS, [0.6, 0.7, 0.8], 0.7), 0.5),
    "between two measured points it goes along the straight line":
        lambda find: math.isclose(find(LAMBDAS, [0.6, 0.7, 0.8], 0.75), 0.75),
    "coming from lambda = 1, the first crossing counts":
        lambda find: math.isclose(find([0.0, 0.25, 0.5, 1.0], [0.8, 0.6, 0.7, 0.9], 0.65), 0.375),
    "a target that is never reached has no lambda: then it returns nan":
        lambda find: math.isnan(find(LAMBDAS, [0.6, 0.7, 0.8], 0.3)),
}
