// Times of images, and the memory of this process.
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "infid/infid.hpp"

using Clock = std::chrono::steady_clock;

// Makes an image, and calls `on_step` when a step has ended.
using Make = std::function<void(const std::function<void()>& on_step)>;

// Times `count` images, and returns a JSON document with medians. `started`: when the process began; `first`: when the
// first image was finished.
std::string bench(const Make& make, int count, Clock::time_point started, Clock::time_point first);
