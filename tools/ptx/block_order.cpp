// A weak topological order (Bourdoncle 1993): the blocks in topological order, each loop together,
// its head first, and its inside ordered the same way without the edges back to the head. Lanes of
// a warp that took different ways run the way that comes first in it, which lets them meet at the
// earliest place ("thread frontiers", Diamos et al. 2011).
#include <algorithm>

#include "program.h"

namespace ptx {

namespace {

using Graph = std::vector<std::vector<int>>;

// Strongly connected components of the nodes with inside[node] == level, in topological order
// (Tarjan 1972, without recursion).
class Components {
 public:
  Components(const Graph& graph, const std::vector<int>& inside, int level, int head)
      : graph_(graph), inside_(inside), level_(level), head_(head) {}

  std::vector<std::vector<int>> find(const std::vector<int>& nodes, std::vector<int>& index,
                                     std::vector<int>& low) {
    for (int node : nodes) index[size_t(node)] = 0;
    for (int node : nodes)
      if (index[size_t(node)] == 0) visit(node, index, low);
    std::reverse(found_.begin(), found_.end());
    return std::move(found_);
  }

 private:
  void visit(int first, std::vector<int>& index, std::vector<int>& low) {
    struct Step {
      int node;
      size_t next;
    };
    std::vector<Step> path;
    const auto enter = [&](int node) {
      index[size_t(node)] = low[size_t(node)] = ++count_;
      stack_.push_back(node);
      path.push_back({node, 0});
    };
    enter(first);
    while (!path.empty()) {
      const int node = path.back().node;
      if (path.back().next < graph_[size_t(node)].size()) {
        const int to = graph_[size_t(node)][path.back().next++];
        if (inside_[size_t(to)] != level_ || to == head_) continue;
        if (index[size_t(to)] == 0) {
          enter(to);
        } else if (index[size_t(to)] > 0) {
          low[size_t(node)] = std::min(low[size_t(node)], index[size_t(to)]);
        }
        continue;
      }
      path.pop_back();
      if (!path.empty()) {
        int& outer = low[size_t(path.back().node)];
        outer = std::min(outer, low[size_t(node)]);
      }
      if (low[size_t(node)] != index[size_t(node)]) continue;
      found_.emplace_back();
      int member;
      do {
        member = stack_.back();
        stack_.pop_back();
        index[size_t(member)] = -1;  // done
        found_.back().push_back(member);
      } while (member != node);
      std::reverse(found_.back().begin(), found_.back().end());  // first the one entered first
    }
  }

  const Graph& graph_;
  const std::vector<int>& inside_;
  const int level_, head_;
  int count_ = 0;
  std::vector<int> stack_;
  std::vector<std::vector<int>> found_;
};

}  // namespace

std::vector<int> block_order(const Graph& successors) {
  const size_t n = successors.size();
  std::vector<int> inside(n, 0), index(n, 0), low(n, 0), order(n, 0), all(n);
  for (size_t i = 0; i < n; ++i) all[i] = int(i);
  struct Part {
    std::vector<int> nodes;
    int head;  // of the loop that they are in; not among them
  };
  std::vector<Part> parts{{all, -1}};
  int levels = 0, next = 0;
  while (!parts.empty()) {
    const Part part = std::move(parts.back());
    parts.pop_back();
    if (part.nodes.size() == 1 && part.head == -2) {
      order[size_t(part.nodes[0])] = next++;
      continue;
    }
    const int level = ++levels;
    for (int node : part.nodes) inside[size_t(node)] = level;
    Components components(successors, inside, level, part.head);
    const auto found = components.find(part.nodes, index, low);
    std::vector<Part> inner;
    for (const std::vector<int>& c : found) {
      inner.push_back({{c[0]}, -2});
      if (c.size() > 1) inner.push_back({{c.begin() + 1, c.end()}, c[0]});
    }
    for (size_t i = inner.size(); i-- > 0;) parts.push_back(std::move(inner[i]));
  }
  return order;
}

}  // namespace ptx
