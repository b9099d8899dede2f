// Five-point similarity alignment of a face to a fixed frame (Umeyama, IEEE TPAMI 1991), equal to
// `infid_export.faces.alignment`.
#pragma once

#include "faces/face.hpp"
#include "faces/resampling.hpp"
#include "infid/infid.hpp"

namespace infid {

// The landmarks in ArcFace's crop, and in the image encoder's, in units of the crop's side.
const Landmarks& arcface_template();
const Landmarks& portrait_template();

// The similarity transform that best maps `source` to `target`, in the least-squares sense; never a reflection.
Affine similarity(const Landmarks& source, const Landmarks& target);

Point applied(const Affine& matrix, const Point& point);

// Warp a face to a frame of `size` × `size` pixels.
Image align(const Image& photo, const Landmarks& landmarks, const Landmarks& frame, int size);

}  // namespace infid
