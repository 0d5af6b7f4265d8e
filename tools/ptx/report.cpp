#include "warp.h"

namespace ptx {

namespace {

std::string place_of(const Module& m, int location) {
  if (location < 0) return "";
  const Location& l = m.locations[size_t(location)];
  const auto name = [&](int file) {
    const auto at = m.files.find(file);
    return at == m.files.end() ? std::string("?") : at->second;
  };
  std::string text = name(l.file) + ":" + std::to_string(l.line);
  if (l.outer_file)
    text += ", inlined in " + name(l.outer_file) + ":" + std::to_string(l.outer_line);
  return text + ", ";
}

// Source line, line of PTX and its text, function; then the calls that led here.
std::string describe(const Warp& warp, const Instruction& i) {
  const Frame* frame = warp.current.frame;
  if (!frame) return "line " + std::to_string(i.line);
  const Module& m = *frame->code->module;
  std::string text = place_of(m, i.location) + m.name + " line " + std::to_string(i.line) + ": " +
                     m.line_text(i.line);
  for (const Frame* f = frame; f->parent; f = f->parent) {
    const Instruction& call = f->parent->code->instructions[size_t(f->return_to - 1)];
    text += "\n    called at " + place_of(m, call.location) + "line " + std::to_string(call.line);
  }
  return text;
}

std::string who(const Warp& warp, int lane) {
  const auto& index = warp.block->index;
  return " (thread " + std::to_string(warp.thread(lane)) + " of block " + std::to_string(index[0]) +
         ", " + std::to_string(index[1]) + ", " + std::to_string(index[2]) + ")";
}

}  // namespace

void report(Warp& warp, const Instruction& i, int lane, const char* kind, const std::string& what) {
  Findings& findings = *warp.block->launch->findings;
  if (findings.count(kind, reinterpret_cast<const void*>(intptr_t(i.line))))
    findings.add({kind, what + who(warp, lane), describe(warp, i)});
}

void fault(Warp& warp, const Instruction& i, int lane, const char* kind, const std::string& what) {
  report(warp, i, lane, kind, what);
  throw Fault(std::string(kind) + ": " + what + who(warp, lane) + "\n    at " + describe(warp, i));
}

std::string state_of(const Warp& warp) {
  std::string text;
  const auto add = [&](Mask lanes, const std::string& what) {
    if (lanes == 0) return;
    if (!text.empty()) text += "; ";
    text += std::to_string(__builtin_popcount(lanes)) + " " + what;
  };
  const auto at = [&](const Group& g) {
    const Instruction& i = g.frame->code->instructions[size_t(g.at)];
    return " at line " + std::to_string(i.line) + ": " +
           g.frame->code->module->line_text(i.line, 60);
  };
  for (const AtBarrier& b : warp.at_barrier)
    add(b.group.lanes, "wait at barrier " + std::to_string(b.number) + at(b.group));
  for (const Group& g : warp.at_cluster) add(g.lanes, "wait for the cluster" + at(g));
  for (const Group& g : warp.at_collective)
    add(g.lanes, "wait for lanes that their mask names" + at(g));
  for (const Group& g : warp.waiting) add(g.lanes, "could go on" + at(g));
  if (warp.current.lanes) add(warp.current.lanes, "run" + at(warp.current));
  add(warp.exited, "have ended");
  return "warp " + std::to_string(warp.index) + ": " + text;
}

}  // namespace ptx
