// SPDX-License-Identifier: Apache-2.0
#include "lk/text/tokenizer.h"

#include <algorithm>
#include <list>

#include "lk/base/file.h"
#include "lk/base/json_text.h"
#include "lk/base/sha256.h"
#include "lk/base/utf8.h"
#include "lk/text/prefix_space.h"
#include "lk/text/tokenizer_impl.h"
#include "lk/text/tokenizer_json.h"
#include "lk/text/unicode.h"

namespace lk {
namespace {

constexpr size_t kMaxInputBytes = size_t{256} << 20;

// Where in the raw text each token of a piece begins. A token covers its own characters; a byte token one byte; an
// unknown one at least a character, and all up to where the next token fits.
void find_begins(const BpeModel& model, const PieceList& list, const Piece& piece, std::span<const int32_t> ids,
                 std::vector<size_t>& begins) {
  const std::string_view text = list.text(piece);
  const auto fits = [&](size_t at, int32_t id) {
    const std::string& token = *model.id_to_token(id);
    return text.substr(at).starts_with(token) ? token.size() : 0;
  };
  size_t at = 0;
  for (size_t k = 0; k < ids.size(); ++k) {
    begins.push_back(list.buffer.origin_at(piece.begin + std::min(at, text.size() - 1)));
    if (at >= text.size()) continue;
    const std::string& token = *model.id_to_token(ids[k]);
    if (const size_t width = fits(at, ids[k]); width > 0) {
      at += width;
    } else if (token.size() == 6 && token.starts_with("<0x")) {
      at += 1;
    } else {
      do at += utf8::char_length(text[at]);
      while (at < text.size() && k + 1 < ids.size() && fits(at, ids[k + 1]) == 0);
    }
  }
}

}  // namespace

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::~Tokenizer() = default;

Result<std::shared_ptr<const Tokenizer>> Tokenizer::load(const std::string& directory) {
  const std::string path = join_path(directory, "tokenizer.json");
  LK_ASSIGN_OR_RETURN(const std::string json, read_file(path, kMaxInputBytes));
  LK_ASSIGN_OR_RETURN(const TokenizerConfig config, TokenizerConfig::load(directory));
  return parse(json, path, config);
}

Result<std::shared_ptr<const Tokenizer>> Tokenizer::parse(std::string_view json, std::string_view where,
                                                          const TokenizerConfig& config, const Tokenizer* base) {
  const std::string file(where);
  LK_ASSIGN_OR_RETURN(const ParsedJson document, ParsedJson::parse(json, file));
  const JsonView root(document.value(), file);
  LK_RETURN_IF_ERROR(root.expect_object());
  if (root.has("version")) {
    LK_ASSIGN_OR_RETURN(const std::string_view version, root.string("version"));
    if (version != "1.0") return root.error(StatusCode::kUnsupported, "version \"{}\" is not supported", version);
  }
  // "truncation" and "padding" are not read: encode never truncates or pads, as transformers' plain
  // call.
  static const boost::json::value null;
  std::list<boost::json::value> changed;  // sections that the other files change
  const auto section = [&](std::string_view key) {
    if (std::optional<boost::json::value> other = with_prefix_space(config, key, document.value()))
      return Result<JsonView>(JsonView(changed.emplace_back(std::move(*other)), file, std::string(key)));
    return root.has(key) ? root.field(key) : Result<JsonView>(JsonView(null, file, std::string(key)));
  };
  auto impl = std::make_unique<Impl>();
  LK_ASSIGN_OR_RETURN(const JsonView model, root.field("model"));
  LK_ASSIGN_OR_RETURN(impl->model, BpeModel::parse(model));
  if (base != nullptr && impl->model->same_as(*base->impl_->model)) impl->model = base->impl_->model;
  LK_ASSIGN_OR_RETURN(const JsonView normalizer, section("normalizer"));
  LK_ASSIGN_OR_RETURN(impl->normalizer, Normalizer::parse(normalizer));
  LK_ASSIGN_OR_RETURN(const JsonView added, section("added_tokens"));
  LK_ASSIGN_OR_RETURN(impl->added, AddedTokens::parse(added, *impl->model, impl->normalizer.get(), config));
  LK_ASSIGN_OR_RETURN(const JsonView pre_tokenizer, section("pre_tokenizer"));
  LK_ASSIGN_OR_RETURN(impl->pre_tokenizer, PreTokenizer::parse(pre_tokenizer));
  LK_ASSIGN_OR_RETURN(const JsonView post_processor, section("post_processor"));
  LK_ASSIGN_OR_RETURN(impl->post_processor, PostProcessor::parse(post_processor));
  LK_ASSIGN_OR_RETURN(const JsonView decoder, section("decoder"));
  LK_ASSIGN_OR_RETURN(impl->decoder, Decoder::parse(decoder));
  impl->decoder_text = json_text(decoder.raw());
  if (base != nullptr) LK_RETURN_IF_ERROR(impl->check_decoder(*base->impl_, decoder));
  Sha256 sha;
  for (const JsonView* part : {&normalizer, &pre_tokenizer, &post_processor, &decoder}) {
    const std::string text = json_text(part->raw()) + ";";
    sha.update(text.data(), text.size());
  }
  impl->pipeline = to_hex(sha.finish());

  const int32_t max_id = std::max(impl->model->max_id(), impl->added.max_id());
  if (impl->post_processor.max_id() > max_id) {
    return post_processor.error(StatusCode::kDataLoss, "id {} is beyond the vocabulary's highest id {}",
                                impl->post_processor.max_id(), max_id);
  }
  impl->vocab_size = int64_t{max_id} + 1;
  return std::shared_ptr<const Tokenizer>(new Tokenizer(std::move(impl)));
}

Result<std::vector<int32_t>> Tokenizer::Impl::plain_ids(std::string_view text, std::vector<size_t>* begins) const {
  if (text.size() > kMaxInputBytes) {
    return invalid_argument("the text has {} bytes, more than {}", text.size(), kMaxInputBytes);
  }
  if (const std::optional<size_t> offset = utf8::find_invalid(text)) {
    return invalid_argument("the text is not valid UTF-8 at byte {}", *offset);
  }
  WorkBudget budget(text.size());
  LK_ASSIGN_OR_RETURN(PieceList list, cut(text, begins != nullptr, budget));
  if (pre_tokenizer != nullptr) LK_RETURN_IF_ERROR(pre_tokenizer->apply(list, budget));
  std::vector<int32_t> ids;
  for (const Piece& piece : list.pieces) {
    const size_t first = ids.size();
    if (piece.token >= 0) {
      ids.push_back(piece.token);
      if (begins != nullptr) begins->push_back(piece.origin);
    } else {
      LK_RETURN_IF_ERROR(model->tokenize(list.text(piece), ids, budget));
      if (begins != nullptr) find_begins(*model, list, piece, std::span(ids).subspan(first), *begins);
    }
  }
  return ids;
}

Result<std::vector<int32_t>> Tokenizer::encode(std::string_view text, bool add_special_tokens) const {
  LK_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, impl_->plain_ids(text, nullptr));
  std::vector<int32_t> out;
  impl_->post_processor.apply(ids, add_special_tokens, out);
  return out;
}

Result<Tokenizer::Encoding> Tokenizer::encode_with_offsets(std::string_view text, bool add_special_tokens) const {
  Encoding plain, out;
  LK_ASSIGN_OR_RETURN(plain.ids, impl_->plain_ids(text, &plain.begins));
  impl_->post_processor.apply(plain.ids, add_special_tokens, out.ids);
  const auto begin = std::search(out.ids.begin(), out.ids.end(), plain.ids.begin(), plain.ids.end());
  out.begins.assign(static_cast<size_t>(begin - out.ids.begin()), 0);
  out.begins.insert(out.begins.end(), plain.begins.begin(), plain.begins.end());
  out.begins.resize(out.ids.size(), text.size());
  // With lstrip and rstrip neighbouring added tokens may overlap.
  for (size_t k = 1; k < out.begins.size(); ++k) out.begins[k] = std::max(out.begins[k], out.begins[k - 1]);
  return out;
}

// Source: AddedVocabulary::extract_and_normalize.
Result<PieceList> Tokenizer::Impl::cut(std::string_view text, bool track, WorkBudget& budget) const {
  PieceList list;
  list.buffer.track = track || (pre_tokenizer != nullptr && pre_tokenizer->needs_origins());
  LK_ASSIGN_OR_RETURN(const std::vector<AddedTokens::Part> parts, added.split(text, false, budget));
  for (const AddedTokens::Part& raw : parts) {
    if (raw.token >= 0) {
      const size_t end = list.buffer.text.size();
      list.pieces.push_back({end, end, static_cast<uint32_t>(raw.begin), raw.token});
      continue;
    }
    NormalizedText part{
        .text = std::string(text.substr(raw.begin, raw.end - raw.begin)), .origins = {}, .track = list.buffer.track};
    if (part.track) {
      part.origins.resize(part.text.size());
      for (size_t k = 0; k < part.origins.size(); ++k) part.origins[k] = static_cast<uint32_t>(raw.begin + k);
    }
    if (normalizer != nullptr) LK_RETURN_IF_ERROR(normalizer->apply(part, budget));
    const size_t base = list.buffer.text.size();
    LK_ASSIGN_OR_RETURN(const std::vector<AddedTokens::Part> pieces, added.split(part.text, true, budget));
    for (const AddedTokens::Part& piece : pieces) {
      list.pieces.push_back({base + piece.begin, base + piece.end, part.origin_at(piece.begin), piece.token});
    }
    list.buffer.add(part.text, part.origins.data());
    LK_RETURN_IF_ERROR(budget.check_size(list.buffer.text.size()));
  }
  return list;
}

double Tokenizer::Impl::longest_shown() const {
  size_t longest = 0;
  for (int32_t id = 0; id <= std::max(model->max_id(), added.max_id()); ++id)
    if (const std::string* token = token_text(id)) longest = std::max(longest, token->size());
  return decoder.growth().factor * static_cast<double>(longest) + decoder.growth().added;
}

// Answers are decoded token by token on the engine's thread, for all its requests.
Status Tokenizer::Impl::check_decoder(const Impl& base, const JsonView& section) const {
  constexpr double kMostShown = 4096;
  if (decoder.has_pattern() && decoder_text != base.decoder_text)
    return section.error(StatusCode::kUnsupported,
                         "an adapter's decoder may not bring a regular expression that the base's has not");
  if (const double most = std::max(kMostShown, base.longest_shown()), shown = longest_shown(); shown > most)
    return section.error(StatusCode::kUnsupported, "a token may show up to {:g} bytes, more than {:g}", shown, most);
  return {};
}

const std::string* Tokenizer::Impl::token_text(int32_t id) const {
  if (const AddedTokens::Token* token = added.find(id)) return &token->text;
  return model->id_to_token(id);
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special_tokens) const {
  DecodeStream stream = impl_->decoder.start();
  std::string text;
  for (const int32_t id : ids) {
    const std::string* token = impl_->token_text(id);
    if (token == nullptr || (skip_special_tokens && impl_->added.is_special_text(*token))) continue;
    stream.push(*token, text);
  }
  stream.finish(text);
  return text;
}

int64_t Tokenizer::vocab_size() const { return impl_->vocab_size; }

bool Tokenizer::same_as(const Tokenizer& other) const {
  return impl_->pipeline == other.impl_->pipeline && impl_->added == other.impl_->added &&
         (impl_->model == other.impl_->model || impl_->model->same_as(*other.impl_->model));
}

bool Tokenizer::shares_vocabulary_with(const Tokenizer& other) const { return impl_->model == other.impl_->model; }

std::optional<int32_t> Tokenizer::token_to_id(std::string_view token) const {
  if (const AddedTokens::Token* added = impl_->added.find(token)) return added->id;
  return impl_->model->token_to_id(token);
}

std::optional<std::string> Tokenizer::id_to_token(int32_t id) const {
  const std::string* token = impl_->token_text(id);
  return token == nullptr ? std::nullopt : std::optional<std::string>(*token);
}

bool Tokenizer::is_special(int32_t id) const {
  const std::string* token = impl_->token_text(id);
  return token != nullptr && impl_->added.is_special_text(*token);
}

std::string Tokenizer::token_bytes(int32_t id) const {
  const std::string* token = impl_->token_text(id);
  if (token == nullptr || impl_->added.is_special_text(*token)) return "";
  return impl_->decoder.middle_bytes(*token);
}

}  // namespace lk
