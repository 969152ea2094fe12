// SPDX-License-Identifier: Apache-2.0
#include "lk/io/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <unistd.h>

#include <bit>
#include <csignal>
#include <cstring>
#include <fstream>

#include "lk/base/sha256.h"
#include "lk/io/safetensors_writer.h"
#include "testing/temp_dir.h"

namespace lk {
namespace {

using ::testing::HasSubstr;
using testing::TempDir;

std::string file_of(const std::string& header, size_t data_bytes) {
  uint64_t length = header.size();
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  return bytes + header + std::string(data_bytes, '\1');
}

Result<SafetensorsIndex> parse(const std::string& bytes) {
  return parse_safetensors(std::as_bytes(std::span(bytes.data(), bytes.size())));
}

void expect_error(const std::string& bytes, StatusCode code, const std::string& part) {
  const auto index = parse(bytes);
  ASSERT_FALSE(index.ok()) << part;
  EXPECT_EQ(index.status().code(), code) << index.status().message();
  EXPECT_THAT(index.status().message(), HasSubstr(part));
}
void expect_bad(const std::string& header, size_t data_bytes, const std::string& part) {
  expect_error(file_of(header, data_bytes), StatusCode::kDataLoss, part);
}

TEST(ParseSafetensors, ReadsNamesShapesAndMetadataInDataOrder) {
  const std::string bytes =
      file_of(R"({"b":{"dtype":"BF16","shape":[2,1],"data_offsets":[8,12]},"__metadata__":{"format":"pt"},)"
              R"("a":{"data_offsets":[0,8],"shape":[2],"dtype":"F32"}}  )",
              12);
  const auto index = parse(bytes);
  ASSERT_TRUE(index.ok()) << index.status().message();
  ASSERT_EQ(index->tensors.size(), 2u);
  EXPECT_EQ(index->tensors[0].name, "a");
  EXPECT_EQ(index->tensors[1].view.dtype(), DType::kBF16);
  EXPECT_EQ(index->tensors[1].view.shape_string(), "[2, 1]");
  EXPECT_EQ(index->metadata.at("format"), "pt");
}

TEST(ParseSafetensors, AcceptsScalarsEmptyTensorsAndNoTensors) {
  EXPECT_TRUE(parse(file_of("{}", 0)).ok());
  const auto index = parse(file_of(
      R"({"s":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"e":{"dtype":"F32","shape":[0,5],"data_offsets":[4,4]}})",
      4));
  ASSERT_TRUE(index.ok()) << index.status().message();
  EXPECT_EQ(index->tensors[0].view.num_elements(), 1);
  EXPECT_EQ(index->tensors[1].view.num_elements(), 0);
}

TEST(ParseSafetensors, RefusesBrokenLengths) {
  expect_error("", StatusCode::kDataLoss, "truncated");
  expect_error("1234567", StatusCode::kDataLoss, "truncated");
  expect_error(std::string(8, '\xff') + "{}", StatusCode::kDataLoss, "exceeds the limit");
  std::string lying = file_of("{}", 0);
  lying[0] = 100;
  expect_error(lying, StatusCode::kDataLoss, "truncated: the header has 100");
  for (size_t cut = 1; cut < 40; ++cut) {
    const std::string whole = file_of(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 8);
    EXPECT_FALSE(parse(whole.substr(0, whole.size() - cut)).ok());
  }
}

TEST(ParseSafetensors, RefusesBrokenHeaders) {
  expect_bad("", 0, "not a JSON object");
  expect_bad("[]", 0, "not a JSON object");
  expect_bad("{", 0, "not valid JSON");
  expect_bad("{} x", 0, "text after");
  expect_bad(R"({"a":1})", 0, "unexpected number");
  expect_bad(R"({"a":{}})", 0, "'a' lacks");
  expect_bad(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}})", 4, "unknown field 'x'");
  expect_bad(R"({"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 4, "'dtype' twice");
  expect_bad(R"({"a":{"dtype":"F32","shape":[1.5],"data_offsets":[0,4]}})", 4, "fraction");
  expect_bad(R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", 4, "negative");
  expect_bad(R"({"a":{"dtype":"F32","shape":[[1]],"data_offsets":[0,4]}})", 4, "unexpected list");
  expect_bad(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}})", 4, "not two numbers");
  expect_bad(
      R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
      4, "duplicate name 'a'");
  expect_bad(R"({"__metadata__":{"a":{}}})", 0, "nested");
  expect_bad(R"({"__metadata__":{"a":1}})", 0, "unexpected number");
}

TEST(ParseSafetensors, RefusesRangesThatDoNotTileTheFile) {
  const auto two = [](int b0, int e0, int b1, int e1) {
    return fmt::format(
        R"({{"a":{{"dtype":"F32","shape":[{}],"data_offsets":[{},{}]}},"b":{{"dtype":"F32","shape":[{}],"data_offsets":[{},{}]}}}})",
        (e0 - b0) / 4, b0, e0, (e1 - b1) / 4, b1, e1);
  };
  EXPECT_TRUE(parse(file_of(two(0, 4, 4, 8), 8)).ok());
  EXPECT_TRUE(parse(file_of(two(4, 8, 0, 4), 8)).ok());
  expect_bad(two(0, 8, 4, 8), 8, "overlapping");
  expect_bad(two(0, 4, 8, 12), 12, "hole");
  expect_bad(two(4, 8, 8, 12), 12, "hole");
  expect_bad(two(0, 4, 4, 12), 8, "outside");
  expect_bad(two(0, 4, 4, 8), 9, "1 bytes after the last tensor");
  expect_bad(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[8,4]}})", 8, "outside");
}

TEST(ParseSafetensors, RefusesShapesThatContradictTheirBytes) {
  expect_bad(R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", 8, "'a': its shape");
  expect_bad(R"({"a":{"dtype":"F32","shape":[4611686018427387905,4],"data_offsets":[0,16]}})", 16, "'a': its shape");
  expect_bad(R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0, "'a': its shape");
}

// Refused where they are wanted: a multimodal checkpoint may have them in parts that nobody reads.
TEST(ParseSafetensors, ListsUnsupportedDtypesAndRanksApart) {
  TempDir dir;
  const std::pair<std::string, std::string> kinds[] = {
      {file_of(R"({"ids":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}})", 8), "'ids' has dtype I64"},
      {file_of(R"({"w":{"dtype":"F32","shape":[1,1,1,1,1],"data_offsets":[0,4]}})", 4), "'w' has 5 dimensions"},
  };
  for (const auto& [bytes, message] : kinds) {
    const auto index = parse(bytes);
    ASSERT_TRUE(index.ok()) << index.status().message();
    EXPECT_TRUE(index->tensors.empty());
    EXPECT_EQ(index->unread.size(), 1u);
    dir.write("model.safetensors", bytes);
    EXPECT_THAT(TensorStore::open_file(dir.file("model.safetensors")).status().message(), HasSubstr(message));
    EXPECT_EQ(TensorStore::open_model(dir.path()).value()->unread().size(), 1u);
  }
}

TEST(TensorStore, AlignsTensorsBehindAnOddHeader) {
  TempDir dir;
  std::string bytes = file_of(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}} )", 0);
  ASSERT_NE(bytes.size() % 4, 0u);
  const float values[] = {1.5f, -2.0f};
  bytes.append(reinterpret_cast<const char*>(values), 8);
  dir.write("x.safetensors", bytes);
  const auto store = TensorStore::open_file(dir.file("x.safetensors"));
  ASSERT_TRUE(store.ok()) << store.status().message();
  EXPECT_EQ((*store)->find("a")->data<float>()[1], -2.0f);
  EXPECT_EQ((*store)->find("b"), nullptr);
}

TensorEntry entry(const char* name, const std::vector<float>& values) {
  return {name, TensorView(values.data(), DType::kF32, {static_cast<int64_t>(values.size())})};
}

int64_t resident_bytes() {
  std::ifstream statm("/proc/self/statm");
  int64_t all = 0, resident = 0;
  statm >> all >> resident;
  return resident * ::sysconf(_SC_PAGESIZE);
}

// Each used to get a page of its own: 60 times the file.
TEST(TensorStore, ManySmallTensorsBehindAnOddHeaderTakeOneCopyOfTheData) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer's allocator keeps what is freed";
#endif
  TempDir dir;
  constexpr int kTensors = 20'000;
  std::string header = "{";
  for (int i = 0; i < kTensors; ++i)
    header += fmt::format(R"("{}":{{"dtype":"F32","shape":[4],"data_offsets":[{},{}]}},)", i, 16 * i, 16 * (i + 1));
  header.back() = '}';
  if (header.size() % 2 == 0) header += ' ';
  const std::string bytes = file_of(header, 16 * kTensors);
  dir.write("file", bytes);
  for (const bool copy : {false, true}) {
    const int64_t before = resident_bytes();
    const auto store = TensorStore::open_file(dir.file("file"), {.copy = copy});
    ASSERT_TRUE(store.ok()) << store.status().message();
    const int64_t grown = resident_bytes() - before, index = kTensors * 400;
    EXPECT_LT(grown, std::ssize(bytes) * 3 + index) << copy;
    EXPECT_LE((*store)->memory_bytes(), std::ssize(bytes) + (copy ? 0 : 16 * kTensors) + index) << copy;
    EXPECT_GE((*store)->memory_bytes(), std::ssize(bytes) + (copy ? 0 : 16 * kTensors)) << copy;
    EXPECT_EQ(std::bit_cast<uint32_t>(*(*store)->find("7")->data<float>()), 0x01010101u);
  }
}

// 3 bytes of one tensor shift all that follow, whatever the header's length.
TEST(TensorStore, TensorsMisalignedWithinTheDataAreAlignedToo) {
  TempDir dir;
  dir.write("file", file_of(R"({"a":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]},)"
                            R"("b":{"dtype":"F32","shape":[2],"data_offsets":[2,10]}})",
                            10));
  for (const bool copy : {false, true}) {
    const auto store = TensorStore::open_file(dir.file("file"), {.copy = copy}).value();
    const TensorView* b = store->find("b");
    EXPECT_EQ(reinterpret_cast<uintptr_t>(b->raw()) % 4, 0u);
    float values[2];
    b->copy_to(values);
    EXPECT_EQ(std::bit_cast<uint32_t>(values[1]), 0x01010101u);
  }
}

TEST(TensorStore, WhoOpensItMayRefuseTheNamesOrTakeSomeOut) {
  TempDir dir;
  dir.write("file", file_of(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                            R"("b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})",
                            12));
  const auto refused =
      TensorStore::open_file(dir.file("file"), {.accept = [](SafetensorsIndex&) { return unsupported("not these"); }});
  EXPECT_EQ(refused.status().message(), "not these");
  const auto store = TensorStore::open_file(dir.file("file"), {.accept =
                                                                   [](SafetensorsIndex& index) {
                                                                     index.tensors.erase(index.tensors.begin());
                                                                     return Status();
                                                                   }})
                         .value();
  EXPECT_EQ(store->find("a"), nullptr);
  EXPECT_NE(store->find("b"), nullptr);
}

TEST(TensorStore, DigestIsThatOfTheTextAndTheFile) {
  TempDir dir;
  const std::string bytes = file_of(R"({"a":{"dtype":"F32","shape":[1000000],"data_offsets":[0,4000000]}})", 4'000'000);
  dir.write("file", bytes);
  Sha256 sha;
  sha.update("config", 6);
  sha.update(bytes.data(), bytes.size());
  const auto expected = sha.finish();
  for (const bool copy : {false, true}) {
    const auto store = TensorStore::open_file(dir.file("file"), {.copy = copy, .digest_after = "config"}).value();
    EXPECT_EQ(store->digest(), expected);
    EXPECT_EQ(store->digest(), expected) << "as often as wanted";
  }
  // Given up half way: nobody may read the file's memory any more.
  for (int i = 0; i < 20; ++i)
    EXPECT_FALSE(TensorStore::open_file(
                     dir.file("file"),
                     {.copy = true, .accept = [](SafetensorsIndex&) { return unsupported("no"); }, .digest_after = ""})
                     .ok());
}

TEST(TensorStore, OpensShardsAndNamesWhatIsMissing) {
  TempDir dir;
  const std::vector<float> one = {1}, two = {2, 3};
  ASSERT_TRUE(write_safetensors(dir.file("s1.safetensors"), {entry("a", one)}).ok());
  ASSERT_TRUE(write_safetensors(dir.file("s2.safetensors"), {entry("b", two)}).ok());
  const auto open = [&](const std::string& map) {
    dir.write("model.safetensors.index.json", R"({"weight_map":)" + map + "}");
    return TensorStore::open_model(dir.path());
  };
  const auto store = open(R"({"a":"s1.safetensors","b":"s2.safetensors"})");
  ASSERT_TRUE(store.ok()) << store.status().message();
  EXPECT_EQ((*store)->tensors().size(), 2u);
  EXPECT_EQ((*store)->find("b")->data<float>()[1], 3.0f);
  EXPECT_THAT(open(R"({"a":"s3.safetensors"})").status().message(), HasSubstr("shard s3.safetensors"));
  EXPECT_THAT(open(R"({"a":"s1.safetensors","c":"s1.safetensors"})").status().message(), HasSubstr("tensor 'c'"));
  EXPECT_THAT(open(R"({"a":"../s1.safetensors"})").status().message(), HasSubstr("not a plain file name"));
  EXPECT_THAT(open(R"({"a":1})").status().message(), HasSubstr("not a string"));
  EXPECT_THAT(open("[]").status().message(), HasSubstr("weight_map"));
  ASSERT_TRUE(write_safetensors(dir.file("s2.safetensors"), {entry("a", two)}).ok());
  EXPECT_THAT(open(R"({"a":"s1.safetensors","b":"s2.safetensors"})").status().message(),
              HasSubstr("also in another shard"));
}

TEST(TensorStore, SaysWhatToDoAboutPickleModels) {
  TempDir dir;
  EXPECT_EQ(TensorStore::open_model(dir.path()).status().code(), StatusCode::kNotFound);
  dir.write("pytorch_model.bin", "x");
  EXPECT_THAT(TensorStore::open_model(dir.path()).status().message(), HasSubstr("safe_serialization"));
}

TEST(WriteSafetensors, RoundTripsAwkwardNamesAndMetadata) {
  TempDir dir;
  const std::vector<float> values = {1, 2, 3, 4, 5, 6};
  const TensorView matrix(values.data(), DType::kF32, {2, 3});
  const std::string path = dir.file("x.safetensors");
  ASSERT_TRUE(write_safetensors(path,
                                {{"q\"uo\\te\n", matrix}, {"empty", TensorView(values.data(), DType::kBF16, {0, 3})}},
                                {{"k", "v\""}})
                  .ok());
  const auto store = TensorStore::open_file(path);
  ASSERT_TRUE(store.ok()) << store.status().message();
  ASSERT_NE((*store)->find("q\"uo\\te\n"), nullptr);
  EXPECT_EQ((*store)->find("q\"uo\\te\n")->data<float>()[5], 6.0f);
  EXPECT_EQ((*store)->metadata().at("format"), "pt");
  EXPECT_EQ((*store)->metadata().at("k"), "v\"");
  uint64_t header = 0;
  std::memcpy(&header, dir.read("x.safetensors").data(), 8);
  EXPECT_EQ(header % 8, 0u);
}

TEST(WriteSafetensors, RefusesDuplicateNames) {
  TempDir dir;
  const std::vector<float> values = {1};
  EXPECT_FALSE(write_safetensors(dir.file("x"), {entry("a", values), entry("a", values)}).ok());
  EXPECT_TRUE(std::filesystem::is_empty(dir.path()));
}

TEST(WriteSafetensors, FullDiskIsAnErrorAndLeavesNothing) {
  TempDir dir;
  const std::vector<float> values(1 << 16, 1.0f);
  // A file size limit stands for the full disk: the same failing write().
  rlimit old{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old), 0);
  const rlimit small{4096, old.rlim_max};
  std::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const Status status = write_safetensors(dir.file("x"), {entry("a", values)});
  setrlimit(RLIMIT_FSIZE, &old);
  EXPECT_EQ(status.code(), StatusCode::kIoError);
  EXPECT_THAT(status.message(), HasSubstr("cannot write"));
  EXPECT_TRUE(std::filesystem::is_empty(dir.path()));
}

TEST(SafetensorsWriter, DroppedHalfWayLeavesNoFile) {
  TempDir dir;
  {
    auto writer = SafetensorsWriter::create(dir.file("x"), {{"a", DType::kF32, {4}}});
    ASSERT_TRUE(writer.ok());
    ASSERT_TRUE(writer->append("12345678", 8).ok());
  }
  EXPECT_TRUE(std::filesystem::is_empty(dir.path()));
  EXPECT_FALSE(SafetensorsWriter::create(dir.file("missing/x"), {}).ok());
}

}  // namespace
}  // namespace lk
