// What is wrong with a program, found while it runs.
#pragma once

#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace ptx {

// Ends a launch.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Finding {
  std::string kind;   // such as "race in shared memory"
  std::string what;   // the particulars of its first occurrence
  std::string where;  // source file and line, function, line of PTX and its text
  uint64_t times = 1;
};

// One for each kind and instruction; the others are counted.
class Findings {
 public:
  // Whether it is the first of its kind at this place, and so wants describing.
  bool count(const std::string& kind, const void* place) {
    const auto [at, is_new] = index_.emplace(std::make_pair(kind, place), all_.size());
    if (!is_new && at->second < all_.size()) ++all_[at->second].times;
    return is_new;
  }
  void add(Finding finding) { all_.push_back(std::move(finding)); }
  bool empty() const { return all_.empty(); }
  const std::vector<Finding>& all() const { return all_; }
  std::string text() const {
    std::string lines;
    for (const Finding& f : all_) {
      lines += f.kind + ": " + f.what + "\n    at " + f.where;
      if (f.times > 1) lines += "\n    " + std::to_string(f.times) + " times";
      lines += "\n";
    }
    return lines;
  }

 private:
  std::map<std::pair<std::string, const void*>, size_t> index_;
  std::vector<Finding> all_;
};

}  // namespace ptx
