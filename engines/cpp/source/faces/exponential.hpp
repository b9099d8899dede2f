// The exponential function in float32, equal to numpy's in every bit.
#pragma once

namespace infid {

float numpy_exp(float value);

}  // namespace infid
