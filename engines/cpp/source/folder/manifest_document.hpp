// What a manifest's JSON document must have, and how it becomes a `Manifest`.
#pragma once

#include "folder/json.hpp"
#include "folder/manifest.hpp"

namespace infid {

constexpr int schema_version = 3;

// Converts a document without its seal. Throws Malformed, as `record` and `_check` of `infid_engines.manifest`.
Manifest manifest_of(const Json& content);
// Adds the defaults and the noise schedule, as `require_usable` checks them. Throws Malformed, or input where Python
// does.
void read_settings(Manifest& manifest, const Json& content);

}  // namespace infid
