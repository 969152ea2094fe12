// SPDX-License-Identifier: Apache-2.0
#include "lk/registry/adapter_record.h"

#include <gtest/gtest.h>

namespace lk {
namespace {

const std::string kSum(64, 'a'), kNothing("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");

AdapterRecord record() {
  return {.name = "sql",
          .version = 3,
          .digest = kSum,
          .files = {{"adapter_config.json", kSum, 10}, {"additional_chat_templates/rag.jinja", kNothing, 0}},
          .tenant = "acme",
          .publisher = "r1",
          .created = 7};
}

TEST(AdapterRecordTest, IsReadAsItWasWritten) {
  EXPECT_EQ(parse_adapter("adapters/sql/3", format_adapter(record())).value(), record());
  AdapterRecord gone{.name = "sql", .version = 3, .state = AdapterRecord::State::kDeleted};
  EXPECT_EQ(parse_adapter("adapters/sql/3", format_adapter(gone)).value(), gone);
  EXPECT_EQ(parse_alias("aliases/a", format_alias("sql@3")).value(), "sql@3");
  EXPECT_EQ(parse_alias("aliases/a", format_alias("")).value(), "");
}

TEST(AdapterRecordTest, NamesCannotReachOtherKeys) {
  EXPECT_EQ(adapter_key("org/sql+x", 3), "adapters/org%2Fsql%2Bx/3");
  EXPECT_EQ(versions_key("a%2Fb"), "adapters/a%252Fb/");
  EXPECT_EQ(alias_in(alias_key("org/a b%")), "org/a b%");
  for (const char* key : {"adapters/s%71l/3", "adapters/sql%/3", "adapters/sql%zz/3", "adapters/%2e%2e/3"})
    EXPECT_FALSE(parse_adapter(key, format_adapter(record())).ok()) << key;
}

TEST(AdapterRecordTest, ContentIsOfTheFilesInAnyOrder) {
  AdapterRecord one = record(), two = record();
  std::swap(two.files[0], two.files[1]);
  two.name = "other";
  EXPECT_EQ(one.content(), two.content());
  two.files[0].bytes = 1;
  EXPECT_NE(one.content(), two.content());
  EXPECT_TRUE(is_sha256(one.content()));
}

TEST(AdapterRecordTest, NoPathsNoOverflowNoSurprises) {
  const auto bad = [](AdapterRecord changed, std::string key = "adapters/sql/3") {
    return parse_adapter(key, format_adapter(changed)).status().code() == StatusCode::kDataLoss;
  };
  for (const char* name :
       {"", "..", "../x", "/etc/passwd", "a/b/c", "a/../b", "a//b", "a/", "/a", ".hidden", "a\\b", "a\nb"}) {
    AdapterRecord changed = record();
    changed.files[0].name = name;
    EXPECT_TRUE(bad(changed)) << name;
  }
  for (const char* sum : {"", "zz", "AA"}) {
    AdapterRecord changed = record();
    changed.files[0].sha256 = sum;
    EXPECT_TRUE(bad(changed)) << sum;
  }
  for (const int64_t bytes : {int64_t{-1}, (int64_t{1} << 40) + 1, std::numeric_limits<int64_t>::max()}) {
    AdapterRecord changed = record();
    changed.files[0].bytes = bytes;
    EXPECT_TRUE(bad(changed)) << bytes;
  }
  // An empty file has one sum, and no other file has it.
  AdapterRecord hollow = record();
  hollow.files[0].bytes = 0;
  EXPECT_TRUE(bad(hollow));
  hollow = record();
  hollow.files[1].bytes = 1;
  EXPECT_TRUE(bad(hollow));
  AdapterRecord many = record();
  for (AdapterRecord::File& file : many.files) file.sha256 = kSum;
  for (AdapterRecord::File& file : many.files) file.bytes = (int64_t{1} << 40) - 1;
  EXPECT_TRUE(bad(many)) << "together";
  AdapterRecord twice = record();
  twice.files[1].name = twice.files[0].name;
  EXPECT_TRUE(bad(twice));
  AdapterRecord empty = record();
  empty.files.clear();
  EXPECT_TRUE(bad(empty));
  AdapterRecord nameless = record();
  nameless.digest = "x";
  EXPECT_TRUE(bad(nameless));
  for (const char* key : {"adapters/sql/03", "adapters/sql/0", "adapters/sql/-1", "adapters/sql/x", "adapters//3",
                          "adapters/../3", "adapters/sql/3/4", "adapters/3", "sql/3", "adapters/sql/99999999999"})
    EXPECT_TRUE(bad(record(), key)) << key;
  for (const char* value : {"", "[]", "{}", R"({"form":1})", R"({"form":1,"state":"odd"})"})
    EXPECT_FALSE(parse_adapter("adapters/sql/3", value).ok()) << value;
  EXPECT_EQ(parse_adapter("adapters/sql/3", R"({"form":2,"state":"ready"})").status().code(), StatusCode::kUnsupported);
  EXPECT_FALSE(parse_adapter("adapters/sql/3", std::string(100'000, ' ')).ok());
  for (const char* value : {"", "7", R"({"form":2,"target":"a"})", R"({"form":1,"target":"../a"})"})
    EXPECT_FALSE(parse_alias("aliases/a", value).ok()) << value;
  EXPECT_FALSE(parse_alias("aliases/../a", format_alias("a")).ok());
}

}  // namespace
}  // namespace lk
