//! The tokens that runs of characters stand for: operators, and words that are keywords here.
//!
//! Used by the lexer. A crash does nothing to it.

use sqlparser::keywords::Keyword;
use sqlparser::tokenizer::Token;

/// The token of an unquoted word, folded.
///
/// Keywords of other systems are mere names, as they are in PostgreSQL: `SELECT top FROM sample` has none.
pub(super) fn word(text: &str) -> Token {
    let mut token = Token::make_word(&text.to_ascii_lowercase(), None);
    if let Token::Word(word) = &mut token
        && is_foreign(word.keyword)
    {
        word.keyword = Keyword::NoKeyword;
    }
    token
}

/// Words that sqlparser gives a meaning of another system in queries.
fn is_foreign(keyword: Keyword) -> bool {
    matches!(
        keyword,
        Keyword::APPLY
            | Keyword::ASOF
            | Keyword::CLUSTER
            | Keyword::CONNECT
            | Keyword::CONNECT_BY_ROOT
            | Keyword::CONVERT
            | Keyword::DISTINCTROW
            | Keyword::DISTRIBUTE
            | Keyword::DIV
            | Keyword::FORMAT
            | Keyword::GLOBAL
            | Keyword::HIGH_PRIORITY
            | Keyword::JSON_TABLE
            | Keyword::LAMBDA
            | Keyword::MATCH
            | Keyword::MATCH_CONDITION
            | Keyword::MATCH_RECOGNIZE
            | Keyword::MEMBER
            | Keyword::MINUS
            | Keyword::OPEN
            | Keyword::OPENJSON
            | Keyword::OUTPUT
            | Keyword::PIVOT
            | Keyword::PREWHERE
            | Keyword::PRIOR
            | Keyword::REGEXP
            | Keyword::RLIKE
            | Keyword::SAFE_CAST
            | Keyword::SAMPLE
            | Keyword::SEMANTIC_VIEW
            | Keyword::SETTINGS
            | Keyword::SORT
            | Keyword::SQL_BIG_RESULT
            | Keyword::SQL_BUFFER_RESULT
            | Keyword::SQL_CALC_FOUND_ROWS
            | Keyword::SQL_NO_CACHE
            | Keyword::SQL_SMALL_RESULT
            | Keyword::START
            | Keyword::STRAIGHT_JOIN
            | Keyword::TOP
            | Keyword::TRY_CONVERT
            | Keyword::UNPIVOT
            | Keyword::VIEW
            | Keyword::XMLTABLE
            | Keyword::XOR
    )
}

/// The token of an operator's characters.
pub(super) fn operator(run: &str) -> Token {
    match run {
        "+" => Token::Plus,
        "-" => Token::Minus,
        "*" => Token::Mul,
        "/" => Token::Div,
        "%" => Token::Mod,
        "^" => Token::Caret,
        "=" => Token::Eq,
        "<>" | "!=" => Token::Neq,
        "<" => Token::Lt,
        ">" => Token::Gt,
        "<=" => Token::LtEq,
        ">=" => Token::GtEq,
        "=>" => Token::RArrow,
        "||" => Token::StringConcat,
        "|" => Token::Pipe,
        "&" => Token::Ampersand,
        "#" => Token::Sharp,
        "~" => Token::Tilde,
        "~*" => Token::TildeAsterisk,
        "!~" => Token::ExclamationMarkTilde,
        "!~*" => Token::ExclamationMarkTildeAsterisk,
        "~~" => Token::DoubleTilde,
        "~~*" => Token::DoubleTildeAsterisk,
        "!~~" => Token::ExclamationMarkDoubleTilde,
        "!~~*" => Token::ExclamationMarkDoubleTildeAsterisk,
        "<<" => Token::ShiftLeft,
        ">>" => Token::ShiftRight,
        "&&" => Token::Overlap,
        "@" => Token::AtSign,
        "^@" => Token::CaretAt,
        "|/" => Token::PGSquareRoot,
        "||/" => Token::PGCubeRoot,
        "->" => Token::Arrow,
        "->>" => Token::LongArrow,
        "#>" => Token::HashArrow,
        "#>>" => Token::HashLongArrow,
        "@>" => Token::AtArrow,
        "<@" => Token::ArrowAt,
        "#-" => Token::HashMinus,
        "@?" => Token::AtQuestion,
        "@@" => Token::AtAt,
        "?" => Token::Question,
        "?&" => Token::QuestionAnd,
        "?|" => Token::QuestionPipe,
        other => Token::CustomBinaryOperator(other.to_owned()),
    }
}
