// See byte_pairs.hpp.
#include "text/byte_pairs.hpp"

#include <algorithm>
#include <queue>

#include "errors.hpp"
#include "folder/unicode.hpp"

namespace infid {
namespace {

constexpr std::size_t kNone = static_cast<std::size_t>(-1);

// GPT-2's character for each byte: printable ones for themselves, the others from U+0100 on.
std::array<std::string, 256> byte_symbols() {
  std::array<std::string, 256> symbols;
  std::uint32_t next = 256;
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173);
    append_utf8(symbols[byte], printable ? byte : next++);
  }
  return symbols;
}

std::uint64_t pair_key(std::int32_t left, std::int32_t right) {
  return std::uint64_t{static_cast<std::uint32_t>(left)} << 32 | static_cast<std::uint32_t>(right);
}

// A symbol of a word, in a list without those that were merged into their left neighbor.
struct Symbol {
  std::int32_t id;
  std::size_t previous, next;
  bool merged;
};

struct Candidate {
  std::uint32_t rank;
  std::size_t left;
  std::int32_t id;
  // std::priority_queue takes the largest first: that of the lowest rank, and of these the leftmost
  bool operator<(const Candidate& other) const {
    return rank != other.rank ? rank > other.rank : left > other.left;
  }
};

}  // namespace

BytePairs::BytePairs(const TokenizerFile& file) {
  const auto id_of = [&](const std::string& word) {
    const auto found = file.words.find(word);
    if (found == file.words.end()) throw Malformed("its vocabulary lacks " + quoted(word));
    return found->second;
  };
  std::uint32_t rank = 0;
  for (const auto& [left, right] : file.merges) {
    merges_[pair_key(id_of(left), id_of(right))] = {rank++, id_of(left + right)};
  }
  const std::int32_t unknown = id_of(file.unknown);
  const auto symbols = byte_symbols();
  for (std::size_t byte = 0; byte < 256; ++byte) {
    const auto inside = file.words.find(symbols[byte]), last = file.words.find(symbols[byte] + file.suffix);
    inside_[byte] = inside == file.words.end() ? unknown : inside->second;
    last_[byte] = last == file.words.end() ? unknown : last->second;
  }
}

const BytePairs::Merge* BytePairs::merge_of(std::int32_t left, std::int32_t right) const {
  const auto found = merges_.find(pair_key(left, right));
  return found == merges_.end() ? nullptr : &found->second;
}

std::vector<std::pair<std::int32_t, std::size_t>> BytePairs::encode(std::string_view word) const {
  std::vector<Symbol> symbols;
  for (std::size_t i = 0; i < word.size(); ++i) {
    const auto byte = static_cast<unsigned char>(word[i]);
    const bool is_last = i + 1 == word.size();
    symbols.push_back({is_last ? last_[byte] : inside_[byte], i ? i - 1 : kNone, is_last ? kNone : i + 1, false});
  }
  std::priority_queue<Candidate> queue;
  const auto consider = [&](std::size_t left) {
    if (left == kNone || symbols[left].next == kNone) return;
    const Merge* merge = merge_of(symbols[left].id, symbols[symbols[left].next].id);
    if (merge) queue.push({merge->rank, left, merge->id});
  };
  for (std::size_t i = 0; i < symbols.size(); ++i) consider(i);
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    Symbol& left = symbols[best.left];
    if (left.merged || left.next == kNone) continue;
    Symbol& right = symbols[left.next];
    const Merge* merge = merge_of(left.id, right.id);
    if (!merge || merge->id != best.id) continue;  // one of the two has changed since
    left.id = best.id;
    left.next = right.next;
    right.merged = true;
    if (left.next != kNone) symbols[left.next].previous = best.left;
    consider(left.previous);
    consider(best.left);
  }
  std::vector<std::pair<std::int32_t, std::size_t>> found;
  for (std::size_t i = 0; i < symbols.size(); i = symbols[i].next) {
    found.emplace_back(symbols[i].id, std::min(symbols[i].next, symbols.size()) - i);
  }
  return found;
}

}  // namespace infid
