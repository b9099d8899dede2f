// CLIP's normalization: Unicode's canonical composition, single spaces, none at the ends, lowercase.
#pragma once

#include <cstddef>

#include "text/code_points.hpp"

namespace infid {

// A part of a text, normalized. Characters that composition changes start where the first of them does.
CodePoints normalized(const CodePoints& text, std::size_t begin, std::size_t end);

}  // namespace infid
