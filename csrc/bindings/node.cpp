// Groups, nodes and steps.
#include <memory>

#include "bindings/bindings.h"
#include "kernels/dispatch.h"
#include "model/node.h"

namespace dllama {

namespace {

// Rows of an int32 array [n, 3] as structs of three int32.
template <typename T>
std::vector<T> rows_of(const Array<int32_t>& array, const char* name) {
  static_assert(sizeof(T) == 3 * sizeof(int32_t));
  if (array.ndim() != 2 || array.shape(1) != 3) throw py::value_error(std::string(name) + " must have shape [n, 3]");
  const auto* first = reinterpret_cast<const T*>(array.data());
  return {first, first + array.shape(0)};
}

Batch make_batch(const NodeConfig& config, const Array<float>& embeddings, const Array<int32_t>& spans,
                 const Array<int32_t>& pages, const Array<int32_t>& wants, std::vector<CandidateQuery> queries) {
  if (embeddings.ndim() != 2 || static_cast<size_t>(embeddings.shape(1)) != config.hidden_size) {
    throw py::value_error("embeddings must have shape [tokens, hidden_size]");
  }
  Batch batch;
  batch.spans = rows_of<Span>(spans, "spans");
  batch.pages = rows_of<PageChange>(pages, "pages");
  batch.wants = rows_of<Want>(wants, "wants");
  batch.queries = std::move(queries);
  batch.embeddings.assign(embeddings.data(), embeddings.data() + embeddings.size());
  return batch;
}

template <typename T>
py::array_t<T> to_array(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

struct Candidates {
  py::array_t<int32_t> ids;
  py::array_t<float> logits;
  py::array_t<float> values;
  float max;
  double sum_exp;
  double log_sum_exp;
};

Candidates make_candidates(const SliceAnswer& answer) {
  std::vector<int32_t> ids;
  std::vector<float> logits;
  for (const TokenLogit& token : answer.best) {
    ids.push_back(token.id);
    logits.push_back(token.logit);
  }
  return {to_array(ids),         to_array(logits),      to_array(answer.values),
          answer.candidates.max, answer.candidates.sum, log_of(answer.all)};
}

struct StepResult {
  py::array logits;  // rows are padded, so this one is strided
  py::array scores;
  py::list candidates;
};

// Logits stay in the core's memory, which the array keeps alive; the others are few and copied.
StepResult make_result(const Outputs& outputs, size_t vocab_size) {
  const auto float_size = static_cast<py::ssize_t>(sizeof(float));
  const auto stride = static_cast<py::ssize_t>(outputs.stride * sizeof(float));
  const py::capsule keep_alive(new std::shared_ptr<Buffer>(outputs.logits),
                               [](void* held) { delete static_cast<std::shared_ptr<Buffer>*>(held); });
  const py::array logits(py::dtype::of<float>(),
                         {static_cast<py::ssize_t>(outputs.num_logits), static_cast<py::ssize_t>(vocab_size)},
                         {stride, float_size}, outputs.logits->data(), keep_alive);
  py::list candidates;
  for (const SliceAnswer& answer : outputs.candidates) candidates.append(make_candidates(answer));
  return {logits, to_array(outputs.scores), candidates};
}

StepResult run_step(Node& node, const Array<float>& embeddings, const Array<int32_t>& spans,
                    const Array<int32_t>& pages, const Array<int32_t>& wants,
                    const std::vector<CandidateQuery>& queries) {
  Batch batch = make_batch(node.config(), embeddings, spans, pages, wants, queries);
  const Outputs* outputs = nullptr;
  {
    const py::gil_scoped_release release;
    outputs = &node.step(std::move(batch));
  }
  return make_result(*outputs, node.config().vocab_size);
}

py::array_t<float> full_logits(Node& node, size_t index) {
  py::array_t<float> row(static_cast<py::ssize_t>(node.config().vocab_size));
  float* out = row.mutable_data();
  const py::gil_scoped_release release;
  node.full_logits(index, out);
  return row;
}

std::pair<int32_t, float> draw(Node& node, size_t index, double coin) {
  const py::gil_scoped_release release;
  const TokenLogit token = node.draw(index, coin);
  return {token.id, token.logit};
}

CandidateQuery make_query(size_t count, size_t limit, float temperature, const Array<int32_t>& ids) {
  if (ids.ndim() != 1) throw py::value_error("ids must have one dimension");
  return {count, limit, temperature, {ids.data(), ids.data() + ids.size()}};
}

void load_rows(Node& node, const std::string& name, size_t first_row, const Array<uint8_t>& rows) {
  if (rows.ndim() != 2) throw py::value_error("rows must have shape [n, row_bytes]");
  const auto num_rows = static_cast<size_t>(rows.shape(0));
  const auto* data = reinterpret_cast<const std::byte*>(rows.data());
  const auto size = static_cast<size_t>(rows.size());
  const py::gil_scoped_release release;
  node.load_rows(name, first_row, num_rows, data, size);
}

py::dict counters(const Node& node) {
  const StepCounters c = node.counters();
  py::dict result;
  result["steps"] = c.steps;
  result["tokens"] = c.tokens;
  result["compute_us"] = c.compute_ns / 1000;
  result["sync_us"] = c.traffic.wait_ns / 1000;
  result["sent_bytes"] = c.traffic.sent_bytes;
  result["received_bytes"] = c.traffic.received_bytes;
  return result;
}

}  // namespace

void register_node(py::module_& m) {
  m.attr("WANT_LOGITS") = static_cast<int>(WantKind::Logits);
  m.attr("WANT_SCORE") = static_cast<int>(WantKind::Score);
  m.attr("WANT_CANDIDATES") = static_cast<int>(WantKind::Candidates);
  m.attr("MAX_CANDIDATES") = kMaxCandidates;
  m.attr("MAX_QUERY_IDS") = kMaxQueryIds;
  py::class_<Group, std::shared_ptr<Group>>(m, "Group")
      .def(py::init([](size_t rank, const std::vector<int>& fds, const std::vector<std::string>& names) {
             return std::make_shared<Group>(rank, fds, names);
           }),
           py::arg("rank") = 0, py::arg("fds") = std::vector<int>{}, py::arg("names") = std::vector<std::string>{})
      .def_property_readonly("rank", &Group::rank)
      .def_property_readonly("world_size", &Group::world_size)
      .def_property_readonly("failed_rank", &Group::failed_rank)
      .def("abort", &Group::abort, py::arg("reason"));
  py::class_<CandidateQuery>(m, "CandidateQuery")
      .def(py::init(&make_query), py::arg("count"), py::arg("limit"), py::arg("temperature"),
           py::arg("ids").noconvert());
  py::class_<Candidates>(m, "Candidates")
      .def_readonly("ids", &Candidates::ids)
      .def_readonly("logits", &Candidates::logits)
      .def_readonly("values", &Candidates::values)
      .def_readonly("max", &Candidates::max)
      .def_readonly("sum_exp", &Candidates::sum_exp)
      .def_readonly("log_sum_exp", &Candidates::log_sum_exp);
  py::class_<StepResult>(m, "StepResult")
      .def_readonly("logits", &StepResult::logits)
      .def_readonly("scores", &StepResult::scores)
      .def_readonly("candidates", &StepResult::candidates);
  py::class_<Node>(m, "Node")
      .def(py::init<NodeConfig, std::shared_ptr<Group>>(), py::arg("config"), py::arg("group"))
      .def_property_readonly("world_size", [](const Node& node) { return node.config().shards.size(); })
      .def("weight_names", [](const Node& node) { return node.weights().names(); })
      .def("weight_shape",
           [](const Node& node, const std::string& name) { return py::tuple(py::cast(node.weights().shape(name))); })
      .def("load_rows", &load_rows, py::arg("name"), py::arg("first_row"), py::arg("rows").noconvert())
      .def("step", &run_step, py::arg("embeddings").noconvert(), py::arg("spans").noconvert(),
           py::arg("pages").noconvert(), py::arg("wants").noconvert(),
           py::arg("queries") = std::vector<CandidateQuery>{})
      .def("full_logits", &full_logits, py::arg("index"))
      .def("draw", &draw, py::arg("index"), py::arg("coin"))
      .def_property("scatter_from", &Node::scatter_from, &Node::set_scatter_from)
      .def("probe", &Node::probe, py::call_guard<py::gil_scoped_release>(), py::arg("num_tokens"), py::arg("scatter"))
      .def("time_products", &Node::time_products, py::call_guard<py::gil_scoped_release>(), py::arg("num_tokens"))
      .def("follow", &Node::follow, py::call_guard<py::gil_scoped_release>())
      .def("stop", &Node::stop, py::call_guard<py::gil_scoped_release>())
      .def("counters", &counters);
}

}  // namespace dllama
