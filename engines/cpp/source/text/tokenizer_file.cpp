// See tokenizer_file.hpp.
#include "text/tokenizer_file.hpp"

#include <algorithm>
#include <limits>
#include <set>

#include "errors.hpp"
#include "folder/json.hpp"
#include "folder/paths.hpp"
#include "folder/unicode.hpp"
#include "text/code_points.hpp"
#include "text/several_vectors.hpp"

namespace infid {
namespace {

constexpr std::size_t kMostBytes = std::size_t{32} << 20;  // SDXL's have 1.7 MB

const std::string kPattern = R"('s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+)";

const Json& entry(const Json& object, const std::string& name) {
  const Json* found = object.find(name);
  if (!found) throw Malformed("it lacks " + python_repr(name));
  return *found;
}

const std::string& text_entry(const Json& object, const std::string& name) {
  const Json& found = entry(object, name);
  if (!found.is(Json::Kind::text)) throw Malformed(python_repr(name) + " is not a string");
  return found.text;
}

std::int32_t id_of(const Json& value) {
  const std::int64_t id = value.is(Json::Kind::integer) ? value.integer() : -1;
  if (id < 0 || id > std::numeric_limits<std::int32_t>::max()) throw Malformed("it has an impossible id");
  return static_cast<std::int32_t>(id);
}

bool equals(const Json* value, const std::string& json) { return canonical_json(value ? *value : Json()) == json; }

// Whether an object has these entries; "null" also stands for a missing one.
bool has(const Json& object, const std::vector<std::pair<std::string, std::string>>& entries) {
  return std::all_of(entries.begin(), entries.end(),
                     [&](const auto& each) { return equals(object.find(each.first), each.second); });
}

std::string start_of(const Json& value) { return first_codes(python_str(value), 40); }

void check_length(const Json& document) {
  const Json* padding = document.find("padding");
  const Json* truncation = document.find("truncation");
  const Json* strategy = padding ? padding->find("strategy") : nullptr;
  const Json* most = truncation ? truncation->find("max_length") : nullptr;
  const Json* stride = truncation ? truncation->find("stride") : nullptr;
  if (!strategy || !most || !stride) throw Malformed("it neither pads nor truncates");
  const std::string length = std::to_string(kPromptLength);
  if (equals(strategy, "{\"Fixed\":" + length + "}") && equals(most, length) && equals(stride, "0")) return;
  throw Malformed("it pads to " + start_of(*strategy) + " and truncates to " + start_of(*most) + ", not " + length);
}

void check_template(const Json& document) {
  const Json* post = document.find("post_processor");
  const Json* defined = post ? post->find("special_tokens") : nullptr;
  const Malformed none("it has no template of start and end tokens");
  if (!defined || !defined->is(Json::Kind::object)) throw none;
  std::set<std::string> undefined;
  for (const char* name : {"single", "pair"}) {
    const Json* pieces = post->find(name);
    if (!pieces || !pieces->is(Json::Kind::list)) throw none;
    for (const Json& piece : pieces->list) {
      const Json* token = piece.find("SpecialToken");
      if (!token) continue;
      const Json* id = token->find("id");
      if (!id || !id->is(Json::Kind::text)) throw none;
      if (!defined->find(id->text)) undefined.insert(id->text);
    }
  }
  if (undefined.empty()) return;
  throw Malformed("its template uses " + python_repr(*undefined.begin()) + ", which it does not define");
}

void read_template(TokenizerFile& file, const Json& post) {
  bool passed = false;
  for (const Json& piece : entry(post, "single").list) {
    if (const Json* token = piece.find("SpecialToken")) {
      auto& ids = passed ? file.after : file.before;
      const Json& defined = entry(entry(post, "special_tokens"), text_entry(*token, "id"));
      for (const Json& id : entry(defined, "ids").list) ids.push_back(id_of(id));
    } else {
      if (passed || !piece.find("Sequence")) throw Malformed("its template does not have one text");
      passed = true;
    }
  }
  if (!passed || file.before.size() + file.after.size() >= kPromptLength) {
    throw Malformed("its template has no place for a text");
  }
}

void read_padding(TokenizerFile& file, const Json& document) {
  const Json &padding = entry(document, "padding"), &truncation = entry(document, "truncation");
  if (!has(padding, {{"direction", "\"Right\""}, {"pad_to_multiple_of", "null"}}) ||
      !has(truncation, {{"direction", "\"Right\""}})) {
    throw Malformed("it does not pad and truncate at the end");
  }
  file.pad = id_of(entry(padding, "pad_id"));
  file.pad_token = text_entry(padding, "pad_token");
}

void read_normalizer(TokenizerFile& file, const Json& normalizer) {
  const std::vector<std::string> usual{
      R"({"type":"NFC"})", R"({"content":" ","pattern":{"Regex":"\\s+"},"type":"Replace"})",
      R"({"strip_left":true,"strip_right":true,"type":"Strip"})", R"({"type":"Lowercase"})"};
  const Json* steps = normalizer.find("normalizers");
  bool known = steps && steps->list.size() >= usual.size();
  for (std::size_t i = 0; known && i < usual.size(); ++i) known = equals(&steps->list[i], usual[i]);
  if (!known) throw Malformed("its normalizer is not CLIP's");
  for (std::size_t i = usual.size(); i < steps->list.size(); ++i) {
    const Json& step = steps->list[i];
    if (!has(step, {{"type", "\"Replace\""}})) throw Malformed("its normalizer is not CLIP's");
    file.several.push_back(several_vectors(text_entry(entry(step, "pattern"), "Regex"), text_entry(step, "content")));
  }
}

void check_pre_tokenizer(const Json& pre_tokenizer) {
  const Json* steps = pre_tokenizer.find("pretokenizers");
  if (steps && steps->list.size() == 2 &&
      has(steps->list[0], {{"type", "\"Split\""},
                           {"pattern", "{\"Regex\":" + json_quoted(kPattern) + "}"},
                           {"behavior", "\"Removed\""},
                           {"invert", "true"}}) &&
      has(steps->list[1], {{"type", "\"ByteLevel\""}, {"add_prefix_space", "false"}, {"use_regex", "false"}})) {
    return;
  }
  throw Malformed("its pattern of words is not CLIP's");
}

std::pair<std::string, std::string> merge_of(const Json& value) {
  if (value.is(Json::Kind::list) && value.list.size() == 2) return {value.list[0].text, value.list[1].text};
  const std::size_t space = value.text.find(' ');  // as older versions of the library write them
  if (space == std::string::npos) throw Malformed("one of its merges is not a pair");
  return {value.text.substr(0, space), value.text.substr(space + 1)};
}

void read_model(TokenizerFile& file, const Json& model) {
  const Json* prefix = model.find("continuing_subword_prefix");
  const Json* ignores = model.find("ignore_merges");
  if (!has(model, {{"type", "\"BPE\""}, {"dropout", "null"}, {"fuse_unk", "false"}, {"byte_fallback", "false"}}) ||
      !(equals(prefix, "null") || equals(prefix, "\"\"")) || !(equals(ignores, "null") || equals(ignores, "false"))) {
    throw Malformed("its model is not CLIP's byte-pair encoding");
  }
  for (const JsonEntry& word : entry(model, "vocab").object) file.words[word.name] = id_of(word.value);
  for (const Json& each : entry(model, "merges").list) file.merges.push_back(merge_of(each));
  file.unknown = text_entry(model, "unk_token");
  file.suffix = text_entry(model, "end_of_word_suffix");
}

void read_added(TokenizerFile& file, const Json& added) {
  for (const Json& each : added.list) {
    const auto flag = [&](const char* name) { return entry(each, name).is_true(); };
    AddedWord word{text_entry(each, "content"), id_of(entry(each, "id")), flag("single_word"),
                   flag("lstrip"),              flag("rstrip"),           flag("normalized")};
    if (word.content.empty()) continue;
    if (!utf8_problem(word.content).empty()) throw Malformed("one of its words is not valid Unicode");
    file.added.push_back(std::move(word));
  }
}

TokenizerFile read(const std::string& path) {
  const Json document = parse_json(read_file(path, kMostBytes));
  check_length(document);
  check_template(document);
  TokenizerFile file;
  read_template(file, entry(document, "post_processor"));
  read_padding(file, document);
  read_normalizer(file, entry(document, "normalizer"));
  check_pre_tokenizer(entry(document, "pre_tokenizer"));
  read_model(file, entry(document, "model"));
  read_added(file, entry(document, "added_tokens"));
  return file;
}

}  // namespace

TokenizerFile read_tokenizer_file(const std::string& path) {
  try {
    return read(path);
  } catch (const Malformed& error) {
    folder_error(path + " cannot be read (" + error.what() + ").", "Build the engine folder again.");
  }
}

}  // namespace infid
