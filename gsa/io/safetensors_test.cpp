#include "gsa/io/safetensors.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <fstream>

#include "gsa/base/error.h"
#include "gsa/testing/random.h"

namespace gsa {
namespace {

namespace fs = std::filesystem;

class SafetensorsTest : public ::testing::Test {
 protected:
  fs::path folder_ = fs::temp_directory_path() / ("gsa_safetensors_test_" + std::to_string(::getpid()));
  fs::path file_ = folder_ / "a.safetensors";
  void SetUp() override { fs::create_directories(folder_); }
  void TearDown() override { fs::remove_all(folder_); }
};

/// The bytes of a tensor, whatever its dtype.
std::string bytes_of(const at::Tensor& tensor) {
  const at::Tensor dense = tensor.contiguous();
  return {static_cast<const char*>(dense.const_data_ptr()),
          static_cast<size_t>(dense.numel() * dense.element_size())};
}

at::Tensor filled(at::IntArrayRef shape, at::ScalarType dtype, uint8_t first) {
  at::Tensor tensor = at::empty(shape, at::TensorOptions(dtype));
  auto* bytes = static_cast<uint8_t*>(tensor.mutable_data_ptr());
  for (int64_t i = 0; i < tensor.numel() * tensor.element_size(); ++i) {
    bytes[i] = dtype == at::kBool ? (first + i) % 2 : static_cast<uint8_t>(first + i);
  }
  return tensor;
}

/// One tensor of every dtype, some scalars and empty ones.
NamedTensors every_dtype() {
  NamedTensors tensors;
  for (auto dtype : {at::kBool,
                     at::kByte,
                     at::kChar,
                     at::kShort,
                     at::kUInt16,
                     at::kInt,
                     at::kUInt32,
                     at::kLong,
                     at::kUInt64,
                     at::kHalf,
                     at::kBFloat16,
                     at::kFloat,
                     at::kDouble,
                     at::kComplexFloat,
                     at::kFloat8_e4m3fn,
                     at::kFloat8_e5m2,
                     at::kFloat8_e4m3fnuz,
                     at::kFloat8_e5m2fnuz,
                     at::kFloat8_e8m0fnu,
                     at::kFloat4_e2m1fn_x2}) {
    tensors.emplace_back(std::string("t.") + c10::toString(dtype), filled({3, 5}, dtype, 7));
  }
  tensors.emplace_back("scalar", filled({}, at::kFloat, 1));
  tensors.emplace_back("empty", filled({2, 0, 3}, at::kHalf, 1));
  tensors.emplace_back("naïve \"name\"\n", filled({1}, at::kByte, 9));
  return tensors;
}

void expect_same(const at::Tensor& got, const at::Tensor& expected, const std::string& name) {
  EXPECT_EQ(got.scalar_type(), expected.scalar_type()) << name;
  EXPECT_EQ(got.sizes(), expected.sizes()) << name;
  EXPECT_EQ(bytes_of(got), bytes_of(expected)) << name;
}

/// A file from a header text and so many bytes of data.
void write_raw(const fs::path& path, const std::string& header, size_t data_bytes) {
  const uint64_t size = header.size();
  std::string bytes(reinterpret_cast<const char*>(&size), sizeof size);
  write_file(path, bytes + header + std::string(data_bytes, 'x'));
}

std::string error_of(const fs::path& path) {
  try {
    SafetensorsFile file(path);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST_F(SafetensorsTest, RoundTripsEveryDtype) {
  const auto tensors = every_dtype();
  write_safetensors(file_, tensors, {{"format", "pt"}, {"note", "two\nlines"}});
  const SafetensorsFile file(file_);
  EXPECT_EQ(file.names().size(), tensors.size());
  EXPECT_EQ(file.metadata().at("note"), "two\nlines");
  for (const auto& [name, tensor] : tensors) expect_same(file.tensor(name), tensor, name);
  EXPECT_THROW(file.tensor("absent"), Error);
}

TEST_F(SafetensorsTest, WritesAnyStrides) {
  const at::Tensor wide = at::arange(12, at::kFloat).view({3, 4});
  write_safetensors(file_, {{"t", wide.t()}, {"column", wide.select(1, 2)}});
  const SafetensorsFile file(file_);
  EXPECT_TRUE(at::equal(file.tensor("t"), wide.t()));
  EXPECT_TRUE(at::equal(file.tensor("column"), wide.select(1, 2)));
}

TEST_F(SafetensorsTest, TensorsOutliveTheFileAndNeverChangeIt) {
  write_safetensors(file_, {{"a", at::zeros({1000})}});
  at::Tensor tensor = SafetensorsFile(file_).tensor("a");
  tensor.add_(1);
  EXPECT_TRUE(at::equal(tensor, at::ones({1000})));
  EXPECT_TRUE(at::equal(SafetensorsFile(file_).tensor("a"), at::zeros({1000})));
}

TEST_F(SafetensorsTest, ReadsTensorsTheFileDidNotAlign) {
  const std::string header =
      R"({"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"f":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}})";
  write_raw(file_, header, 9);
  const SafetensorsFile file(file_);
  EXPECT_EQ(bytes_of(file.tensor("f")), "xxxxxxxx");
  EXPECT_EQ(reinterpret_cast<uintptr_t>(file.tensor("f").const_data_ptr()) % 4, 0u);
}

TEST_F(SafetensorsTest, RefusesWhatTheFormatLacks) {
  EXPECT_THROW(write_safetensors(file_, {{"a", at::zeros({1})}, {"a", at::zeros({1})}}), Error);
  EXPECT_THROW(write_safetensors(file_, {{"__metadata__", at::zeros({1})}}), Error);
  EXPECT_THROW(write_safetensors(file_, {{"a", at::zeros({1}, at::kComplexDouble)}}), Error);
  EXPECT_THROW(write_safetensors(file_, {{"a", at::Tensor()}}), Error);
  EXPECT_THROW(write_safetensors(file_, {{"\xff", at::zeros({1})}}), Error);
  EXPECT_FALSE(fs::exists(file_));
}

TEST_F(SafetensorsTest, MalformedHeadersAreOneClearError) {
  const std::string first = R"("a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]})";
  const struct {
    std::string header;
    size_t data_bytes;
    const char* message;
  } cases[] = {
      {"{" + first + "}", 7, "truncated: tensor \"a\" ends at byte 8 of the data, which has 7"},
      {"{" + first + "}", 9, "1 bytes after the last tensor belong to none"},
      {"{" + first + "," + first + "}", 8, "header names \"a\" twice"},
      {"{" + first + R"(,"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})", 12,
       "tensor \"b\" overlaps the one before"},
      {"{" + first + R"(,"b":{"dtype":"F32","shape":[2],"data_offsets":[12,20]}})", 20,
       "tensor \"b\" leaves a gap before it"},
      {"{" + first + R"(,"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8,
       "tensor \"b\" overlaps the one before"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", 8,
       "dtype and shape expect 8 bytes, data_offsets are [8,0]"},
      {R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", 8, "dtype and shape expect 12 bytes"},
      {R"({"a":{"dtype":"F33","shape":[2],"data_offsets":[0,8]}})", 8, "unknown dtype \"F33\""},
      {R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", 8,
       "shape expected whole numbers from 0, got -2"},
      {R"({"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}})", 8,
       "shape expected whole numbers from 0, got 2.0"},
      {R"({"a":{"dtype":"F32","shape":2,"data_offsets":[0,8]}})", 8, "shape expected a list"},
      {R"({"a":{"dtype":"F32","shape":[4611686018427387904,4,2],"data_offsets":[0,8]}})", 8,
       "shape too large"},
      {R"({"a":{"dtype":"F32","shape":[0,4611686018427387904,4],"data_offsets":[0,0]}})", 0,
       "shape too large"},
      {R"({"a":{"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,8]}})", 8, "shape too large"},
      {R"({"a":{"dtype":"F32","shape":[99999999999999999999],"data_offsets":[0,8]}})", 8,
       "shape expected whole numbers"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8,16]}})", 8,
       "data_offsets expected [begin, end]"},
      {R"({"a":{"dtype":"F32","shape":[2]}})", 8, "header lacks \"data_offsets\""},
      {R"({"a":7})", 8, "tensor \"a\": header expected an object, got 7"},
      {R"({"__metadata__":{"k":1}})", 0, "__metadata__ \"k\" expected a string, got 1"},
      {R"({"a":{"dtype":"F32","shape":[[[2]]],"data_offsets":[0,8]}})", 8, "nested deeper"},
      {std::string(1000000, '['), 0, "header expected a JSON object"},
      {R"({"a":)" + std::string(1000000, '['), 0, "nested deeper"},
      {"[]", 0, "header expected a JSON object"},
      {"{", 0, "not valid JSON"},
      {"{\"\xff\":1}", 0, "not valid JSON"},
      {"", 0, "header expected a JSON object"},
  };
  for (const auto& test : cases) {
    write_raw(file_, test.header, test.data_bytes);
    const std::string message = error_of(file_);
    EXPECT_NE(message.find(test.message), std::string::npos) << test.header.substr(0, 100) << "\n" << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    EXPECT_NE(message.find(file_.string()), std::string::npos) << message;
    EXPECT_LT(message.size(), 500u);
  }
}

TEST_F(SafetensorsTest, AbsurdLengthsAreOneClearError) {
  write_file(file_, "");
  EXPECT_NE(error_of(file_).find("truncated: 0 bytes"), std::string::npos);
  write_file(file_, "1234567");
  EXPECT_NE(error_of(file_).find("truncated: 7 bytes"), std::string::npos);
  write_file(file_, "\xff\xff\xff\xff\xff\xff\xff\xff{}");
  EXPECT_NE(error_of(file_).find("not a safetensors file"), std::string::npos);
  write_file(file_, std::string("\x03\0\0\0\0\0\0\0{}", 10));
  EXPECT_NE(error_of(file_).find("truncated: header of 3 bytes"), std::string::npos);
  EXPECT_NE(error_of(folder_).find("expected a regular file"), std::string::npos);
  EXPECT_NE(error_of(folder_ / "absent").find("cannot open"), std::string::npos);
}

/// Changes a few bytes: flips, digits, cuts, repeats, wherever they land; the header more often than the
/// data.
std::string mutated(std::string bytes, std::mt19937_64& random) {
  const int64_t changes = testing::draw(random, 1, 4);
  for (int64_t change = 0; change < changes && !bytes.empty(); ++change) {
    const int64_t last = static_cast<int64_t>(bytes.size()) - 1;
    const size_t at =
        testing::draw(random, 0, testing::draw(random, 0, 3) == 0 ? last : std::min<int64_t>(last, 400));
    switch (testing::draw(random, 0, 5)) {
      case 0:
        bytes[at] = static_cast<char>(testing::draw(random, 0, 255));
        break;
      case 1:
        bytes[at] ^= static_cast<char>(1 << testing::draw(random, 0, 7));
        break;
      case 2:
        bytes[at] = "0123456789{}[],:\"-.e"[testing::draw(random, 0, 19)];
        break;
      case 3:
        bytes.resize(at);
        break;
      case 4:
        bytes.insert(at, bytes.substr(at, testing::draw(random, 1, 60)));
        break;
      case 5:
        bytes.erase(at, testing::draw(random, 1, 40));
        break;
    }
  }
  return bytes;
}

TEST_F(SafetensorsTest, MutatedFilesNeverDoWorseThanAnError) {
  write_safetensors(file_, every_dtype(), {{"format", "pt"}});
  const std::string original = read_file(file_);
  const fs::path broken = folder_ / "broken.safetensors";
  int accepted = 0;
  for (uint64_t round = 0; round < 1000; ++round) {
    auto random = testing::case_generator(round);
    {  // without the fsync of write_file, which would take most of the test
      std::ofstream stream(broken, std::ios::binary);
      stream << mutated(original, random);
    }
    try {
      const SafetensorsFile file(broken);
      ++accepted;
      size_t total = 0;
      for (const auto& name : file.names()) total += bytes_of(file.tensor(name)).size();
      EXPECT_LE(total, fs::file_size(broken)) << "round " << round;
    } catch (const Error& error) {
      EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos)
          << "round " << round << ": " << error.what();
    }
  }
  EXPECT_GT(accepted, 0) << "changes in the data alone leave a valid file";
  EXPECT_LT(accepted, 800) << "most changes hit the header";
}

// The official package reads what we write and writes what we read, for every dtype that it has.
constexpr const char* kGolden = R"(
import sys, torch
from safetensors import safe_open
from safetensors.torch import save_file
folder = sys.argv[1]
with safe_open(folder + '/a.safetensors', 'pt') as file:
    assert file.metadata() == {'format': 'pt'}, file.metadata()
    tensors = {name: file.get_tensor(name) for name in file.keys()}
assert tensors['scalar'].shape == () and tensors['empty'].shape == (2, 0, 3)
assert tensors['t.Int'].dtype == torch.int32 and tensors['t.Float8_e5m2'].dtype == torch.float8_e5m2
assert tensors['t.Int'].flatten()[0].item() == int.from_bytes(bytes([7, 8, 9, 10]), 'little')
save_file(tensors, folder + '/b.safetensors', {'back': 'again'})
)";

TEST_F(SafetensorsTest, AgreesWithTheOfficialPackage) {
  const auto tensors = every_dtype();
  write_safetensors(file_, tensors, {{"format", "pt"}});
  write_file(folder_ / "golden.py", kGolden);
  const std::string command =
      std::string(GSA_PYTHON) + " " + (folder_ / "golden.py").string() + " " + folder_.string();
  ASSERT_EQ(std::system(command.c_str()), 0);
  const SafetensorsFile file(folder_ / "b.safetensors");
  EXPECT_EQ(file.metadata().at("back"), "again");
  ASSERT_EQ(file.names().size(), tensors.size());
  for (const auto& [name, tensor] : tensors) expect_same(file.tensor(name), tensor, name);
}

}  // namespace
}  // namespace gsa
