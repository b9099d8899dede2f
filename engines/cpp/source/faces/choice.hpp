// Chooses the face of a photo, equal to `infid_export.faces.choice`.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "faces/face.hpp"

namespace infid {

// Why a detection in a photo of `width` × `height` pixels is not a plausible face; empty if it is.
std::string doubt(const Face& face, int width, int height);

// The plausible faces, the preferred one first: those with a score near the best one, from large to small; then the
// others, from large to small.
std::vector<Face> plausible_faces(const std::vector<Face>& faces, int width, int height);

// The face with an index into `plausible_faces`, by default the first. `limits` are those of the detector, which may
// explain why nothing was found. Throws input.
Face choose_face(const std::vector<Face>& faces, std::optional<int> index, int width, int height,
                 const std::string& limits);

}  // namespace infid
