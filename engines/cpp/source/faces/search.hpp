// Finds the faces of a photo, in tiles if the whole photo shows none, equal to `infid_export.faces.search`.
#pragma once

#include <functional>
#include <vector>

#include "faces/face.hpp"
#include "infid/infid.hpp"

namespace infid {

using Detect = std::function<std::vector<Face>(const Image&)>;

// The faces from the last search, plausible or not, largest first. A face in a large photo can be too small in the
// detector's scaled input. If the whole photo shows no plausible face, it is searched in tiles of half its longer side,
// then of a quarter and so on, until there is one.
std::vector<Face> find_faces(const Detect& detect, const Image& photo);

}  // namespace infid
