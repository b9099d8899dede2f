// Resampling of 8-bit RGB images, equal to Pillow's in every byte.
#pragma once

#include <array>

#include "infid/infid.hpp"

namespace infid {

// The part of an image from `left` and `top`; what lies outside is left out.
Image cropped(const Image& image, int left, int top, int width, int height);

// `Image.reduce`: the mean of each block of `factor` × `factor` pixels, or of what the image has of it.
Image reduced(const Image& image, int factor);

// `Image.resize` with the filter BILINEAR, which covers all pixels of a smaller image.
Image resized(const Image& image, int width, int height);

// `Image.transform` with AFFINE and BICUBIC. The matrix maps pixels of the result to the image's: a x + b y + c and
// d x + e y + f, where pixel centers are at ½. The area outside the image is black.
using Affine = std::array<double, 6>;
Image warped(const Image& image, int width, int height, const Affine& matrix);

}  // namespace infid
