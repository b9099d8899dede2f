// Calls on several threads.
#pragma once

#include <cstddef>
#include <functional>

namespace infid {

// Calls `work(0)` to `work(count - 1)`, on as many threads as there are cores. What the call with the lowest number
// throws is thrown when all have ended; after an exception no further call starts.
void in_parallel(std::size_t count, const std::function<void(std::size_t)>& work);

}  // namespace infid
