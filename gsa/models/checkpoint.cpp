#include "gsa/models/checkpoint.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

#include <set>
#include <string>
#include <vector>

#include "gsa/base/config.h"
#include "gsa/base/error.h"
#include "gsa/io/checkpoint_folder.h"

namespace gsa {
namespace {

// What older Llama folders carry beside parameters; it follows from the configuration.
bool is_derived(const std::string& name) {
  return name.ends_with("rotary_emb.inv_freq");
}

std::string shape_text(at::IntArrayRef shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    if (i > 0) text += ',';
    text += std::to_string(shape[i]);
  }
  return text + "]";
}

at::Tensor read_tensor(const CheckpointTensors& file, const std::string& name, const at::Tensor& like,
                       const std::string& source) {
  const auto& entry = file.entry(name);
  if (at::IntArrayRef(entry.shape) != like.sizes()) {
    fail(source, ": tensor '", name, "' expected shape ", shape_text(like.sizes()), ", got ",
         shape_text(entry.shape));
  }
  if (!at::isFloatingType(entry.dtype)) {
    fail(source, ": tensor '", name, "' expected floating-point numbers, got ", at::toString(entry.dtype));
  }
  return file.tensor(name);
}

// Names in the file that the model does not have. A tied model's folder may repeat the embedding as
// lm_head.weight.
void check_unexpected(const CheckpointTensors& file, const std::set<std::string>& known, bool tied,
                      const std::string& source) {
  for (const auto& name : file.names()) {
    if (known.count(name) > 0 || is_derived(name) || (tied && name == "lm_head.weight")) continue;
    const std::vector<std::string> candidates(known.begin(), known.end());
    fail(source, ": unexpected tensor '", name, "' (nearest in the model: '", nearest_name(name, candidates),
         "')");
  }
}

std::string dtype_name(at::ScalarType dtype) {
  if (dtype == at::kFloat) return "float32";
  if (dtype == at::kDouble) return "float64";
  if (dtype == at::kBFloat16) return "bfloat16";
  return "float16";
}

}  // namespace

Decoder load_checkpoint(const std::filesystem::path& folder, const LoadOptions& options) {
  const at::NoGradGuard no_gradient;
  const auto config_path = checkpoint_file(folder, "config.json");
  Decoder model(decoder_config_from_hf(read_json(config_path), config_path.string()));
  const CheckpointTensors file(folder);
  const std::string source = folder.string();
  std::set<std::string> known;
  model.visit_tensors([&](const std::string& name, at::Tensor& tensor) {
    known.insert(name);
    const bool is_buffer = name.ends_with(".running_mean");
    if (!file.contains(name))
      fail(source, ": tensor '", name, "' ", shape_text(tensor.sizes()), " is missing");
    const at::Tensor stored = read_tensor(file, name, tensor, source);
    tensor = stored.to(options.device, is_buffer ? at::kFloat : options.dtype.value_or(stored.scalar_type()));
    // Training and buffers write in place: never into the mapped file's pages.
    if (tensor.is_same(stored) || tensor.is_alias_of(stored)) tensor = tensor.clone();
  });
  check_unexpected(file, known, model.config().tie_word_embeddings, source);
  return model;
}

void save_checkpoint(Decoder& model, const std::filesystem::path& folder, int64_t max_shard_bytes) {
  std::filesystem::create_directories(folder);
  NamedTensors tensors = model.named_parameters();
  for (auto& buffer : model.named_buffers()) tensors.push_back(buffer);
  for (auto& [name, tensor] : tensors) tensor = tensor.detach();
  write_checkpoint_tensors(folder, tensors, static_cast<uint64_t>(max_shard_bytes));
  write_json(folder / "config.json", decoder_config_to_hf(model.config(), dtype_name(model.dtype())));
}

Decoder convert_dense(Decoder dense, const GsaConfig& gsa, uint64_t seed) {
  const at::NoGradGuard no_gradient;
  if (variant_name(dense.config().gsa) != "dense") {
    fail("convert: expected a dense model, got the variant '", variant_name(dense.config().gsa), "'");
  }
  DecoderConfig config = dense.config();
  config.gsa = gsa;
  config.gsa.gates.identity = true;
  Decoder converted(config);
  const NamedTensors old = dense.named_parameters();
  converted.visit_tensors([&](const std::string& name, at::Tensor& tensor) {
    for (const auto& [old_name, old_tensor] : old) {
      if (old_name == name) tensor = old_tensor;
    }
  });
  converted.initialize_additions(seed);
  return converted;
}

Decoder add_indexer(Decoder model, const GsaConfig& gsa, uint64_t seed) {
  const at::NoGradGuard no_gradient;
  if (!gsa.indexer) fail("convert: expected a configuration with an indexer");
  DecoderConfig config = model.config();
  config.gsa.indexer = gsa.indexer;
  config.gsa.budget = gsa.budget;
  Decoder extended(config);
  const NamedTensors old = model.named_parameters();
  const auto keep_old = [&] {
    extended.visit_tensors([&](const std::string& name, at::Tensor& tensor) {
      if (is_indexer_parameter(name)) return;
      for (const auto& [old_name, old_tensor] : old) {
        if (old_name == name) tensor = old_tensor;
      }
    });
  };
  keep_old();
  extended.initialize_additions(seed);  // draws gates too
  keep_old();
  return extended;
}

}  // namespace gsa
