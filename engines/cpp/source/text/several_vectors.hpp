// Words of textual inversion with several vectors: see `_written_out` in `infid_export.model.tokenizers`.
#pragma once

#include <string>

#include "text/code_points.hpp"
#include "text/tokenizer_file.hpp"

namespace infid {

// Reads the pattern and the replacement of a tokenizer file. Throws Malformed if they are of another kind.
SeveralVectors several_vectors(const std::string& pattern, const std::string& content);
// A text in which the word stands for all its vectors.
CodePoints written_out(const CodePoints& text, const SeveralVectors& word);

}  // namespace infid
