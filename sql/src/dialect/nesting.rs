//! Bounds the depth of what a statement's tokens can become, before anything recursive sees them.
//!
//! Counts brackets, `CASE`, and the terms of operator chains, which parse into one level each. The count is
//! never below the depth of the tree. Called by `parse` for each statement; a crash does nothing to it.

use super::lexer::Lexeme;
use crate::error::SqlError;
use millstream_catalog::model::{SqlState, limit};
use sqlparser::keywords::Keyword;
use sqlparser::tokenizer::Token;

/// Checks one statement.
///
/// # Errors
/// `54001` when it nests too deeply or chains too many operators, `54000` for a list with too many items.
pub(super) fn check(lexemes: &[Lexeme]) -> Result<(), SqlError> {
    let mut frames = vec![Frame::new(Bracket::Statement)];
    let mut previous = Role::Start;
    let mut angles = Angles::default();
    for lexeme in lexemes {
        angles.step(&lexeme.token.token).map_err(|error| error.at(lexeme.position()))?;
        let role = role(&lexeme.token.token, previous);
        step(&mut frames, role, previous).map_err(|error| error.at(lexeme.position()))?;
        previous = role;
    }
    while frames.len() > 1 {
        close(&mut frames)?;
    }
    frames.first_mut().map_or(Ok(()), |frame| within(frame.depth()))
}

/// `STRUCT<…>`, `MAP<…>` and `ARRAY<…>` in one another, which sqlparser reads recursively.
#[derive(Default)]
struct Angles {
    depth: usize,
    /// The last token was such a word.
    is_named: bool,
}

impl Angles {
    fn step(&mut self, token: &Token) -> Result<(), SqlError> {
        let named = match token {
            Token::Word(word) => matches!(word.keyword, Keyword::STRUCT | Keyword::MAP | Keyword::ARRAY),
            _ => false,
        };
        match token {
            Token::Lt if self.is_named => self.depth += 1,
            Token::Gt => self.depth = self.depth.saturating_sub(1),
            Token::ShiftRight => self.depth = self.depth.saturating_sub(2),
            // What a type may have inside.
            Token::Word(_) | Token::Comma | Token::LParen | Token::RParen | Token::LBracket | Token::RBracket => {}
            Token::Number(..) => {}
            _ => self.depth = 0,
        }
        self.is_named = named;
        if self.depth > limit::TYPE_NESTING_MAX {
            return Err(too_deep(format!("the limit is {} levels of a type", limit::TYPE_NESTING_MAX)));
        }
        Ok(())
    }
}

/// What a token does to the depth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Start,
    Open(Bracket),
    Close(Bracket),
    Or,
    And,
    Operator,
    /// `UNION` and the like: one more level of the plan.
    Set,
    /// `JOIN`: likewise, and a relation follows.
    Join,
    /// `FROM`: a relation follows, if no function's argument does.
    From,
    Select,
    Comma,
    /// A keyword that begins another expression.
    Clause,
    /// A name or literal.
    Operand,
    /// `AS` or `.`: the next word is a name.
    Naming,
    /// `DISTINCT`, which `FROM` may follow inside an expression.
    Distinct,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bracket {
    Statement,
    Paren,
    Square,
    Case,
}

struct Frame {
    bracket: Bracket,
    or: usize,
    and: usize,
    and_max: usize,
    other: usize,
    other_max: usize,
    inner: usize,
    item_max: usize,
    sets: usize,
    commas: usize,
    /// A relation may stand here: after `FROM` and `JOIN`.
    in_from: bool,
    /// How many parentheses in the place of a relation open here one after the other, this one the last.
    run: usize,
    /// How often sqlparser reads what is in here, at worst: see [`ATTEMPTS_MAX`].
    attempts: usize,
    /// The token before it is a bracket that opens too.
    follows: bool,
    /// `UNION` and the like in it.
    set_operations: usize,
    /// A query is in it.
    is_query: bool,
}

/// sqlparser reads a sub-query in n parentheses in the place of a relation up to n times, as sub-query and as
/// join, and what is nested in it as often again.
const ATTEMPTS_MAX: usize = 4_096;

impl Frame {
    fn new(bracket: Bracket) -> Self {
        Self {
            bracket,
            or: 0,
            and: 0,
            and_max: 0,
            other: 0,
            other_max: 0,
            inner: 0,
            item_max: 0,
            sets: 0,
            commas: 0,
            in_from: false,
            run: 0,
            attempts: 1,
            follows: false,
            set_operations: 0,
            is_query: false,
        }
    }

    /// The frame of a bracket that opens in this one.
    fn open(&self, bracket: Bracket, previous: Role) -> Self {
        let follows = previous == Role::Open(Bracket::Paren) && self.run > 0;
        let is_relation = bracket == Bracket::Paren && (self.in_from || follows);
        let run = match (is_relation, follows) {
            (false, _) => 0,
            (true, false) => 1,
            (true, true) => self.run + 1,
        };
        let follows = previous == Role::Open(Bracket::Paren);
        Self { run, attempts: self.attempts, follows, ..Self::new(bracket) }
    }

    fn end_comparison(&mut self) {
        self.other_max = self.other_max.max(self.other);
        self.other = 0;
    }

    fn end_conjunction(&mut self) {
        self.end_comparison();
        self.and_max = self.and_max.max(self.and);
        self.and = 0;
    }

    fn end_item(&mut self) {
        self.end_conjunction();
        self.item_max = self.item_max.max(self.or + self.and_max + self.other_max + self.inner);
        (self.or, self.and_max, self.other_max, self.inner) = (0, 0, 0, 0);
    }

    fn depth(&mut self) -> usize {
        self.end_item();
        1 + self.sets + self.item_max
    }

    /// An upper bound of the depth so far, cheap enough for each token.
    fn so_far(&self) -> usize {
        self.sets + self.or + self.and + self.other
    }
}

fn step(frames: &mut Vec<Frame>, role: Role, previous: Role) -> Result<(), SqlError> {
    let count = frames.len();
    let Some(top) = frames.last_mut() else { return Ok(()) };
    match role {
        Role::Open(bracket) => {
            if bracket == Bracket::Square {
                top.other += 1;
            }
            if count > limit::NESTING_MAX {
                return Err(too_deep(format!("the limit is {} levels of nesting", limit::NESTING_MAX)));
            }
            let frame = top.open(bracket, previous);
            frames.push(frame);
            return Ok(());
        }
        Role::Close(bracket) => return close_to(frames, bracket),
        Role::Or => {
            top.end_conjunction();
            top.or += 1;
        }
        Role::And => {
            top.end_comparison();
            top.and += 1;
        }
        Role::Operator => top.other += 1,
        Role::Set => {
            top.end_item();
            top.sets += 1;
            top.set_operations += 1;
            mark_query(frames)?;
            return Ok(());
        }
        Role::Comma => {
            top.end_item();
            top.commas += 1;
            if top.commas >= limit::LIST_ITEMS_MAX && top.bracket != Bracket::Statement {
                return Err(SqlError::new(SqlState::ProgramLimitExceeded, "list has too many items")
                    .detail(format!("the limit is {} items", limit::LIST_ITEMS_MAX)));
            }
        }
        Role::Join => {
            top.end_item();
            top.sets += 1;
            top.in_from = true;
        }
        Role::From => {
            top.end_item();
            top.in_from = true;
        }
        Role::Clause => {
            top.end_item();
            top.in_from = false;
        }
        Role::Select => {
            top.end_item();
            top.in_from = false;
            if previous == Role::Open(Bracket::Paren) && top.run > 1 {
                top.attempts = top.attempts.saturating_mul(top.run);
                if top.attempts > ATTEMPTS_MAX {
                    return Err(too_deep("too many doubled parentheses around sub-queries".to_owned()));
                }
            }
            mark_query(frames)?;
            return Ok(());
        }
        Role::Start | Role::Operand | Role::Naming | Role::Distinct => {}
    }
    within(top.so_far())
}

/// Marks the innermost bracket, and those that open right before it, as queries.
fn mark_query(frames: &mut [Frame]) -> Result<(), SqlError> {
    for frame in frames.iter_mut().rev() {
        if frame.is_query {
            break;
        }
        frame.is_query = true;
        if !frame.follows {
            break;
        }
    }
    within(frames.last().map_or(0, Frame::so_far))?;
    if frames.iter().filter(|frame| frame.is_query).count() > limit::QUERIES_NESTED_MAX {
        return Err(too_deep(format!("the limit is {} queries in one another", limit::QUERIES_NESTED_MAX)));
    }
    if frames.iter().map(|frame| frame.set_operations).sum::<usize>() > limit::SET_OPERATIONS_MAX {
        return Err(too_deep(format!("the limit is {} set operations in a row", limit::SET_OPERATIONS_MAX)));
    }
    Ok(())
}

/// Closes frames up to the one that `bracket` opened; a bracket that none opened is left to the parser.
fn close_to(frames: &mut Vec<Frame>, bracket: Bracket) -> Result<(), SqlError> {
    let Some(at) = frames.iter().rposition(|frame| frame.bracket == bracket) else { return Ok(()) };
    // `END` closes only a `CASE` of its own level; a bracket closes every `CASE` left open in it.
    if bracket == Bracket::Case && at + 1 != frames.len() {
        return Ok(());
    }
    while frames.len() > at {
        close(frames)?;
    }
    Ok(())
}

fn close(frames: &mut Vec<Frame>) -> Result<(), SqlError> {
    let depth = frames.pop().map_or(0, |mut frame| frame.depth());
    within(depth)?;
    if let Some(parent) = frames.last_mut() {
        parent.inner = parent.inner.max(depth);
    }
    Ok(())
}

fn within(depth: usize) -> Result<(), SqlError> {
    if depth <= limit::EXPRESSION_DEPTH_MAX {
        return Ok(());
    }
    Err(too_deep(format!("the limit is {} levels, one for each operator of a chain", limit::EXPRESSION_DEPTH_MAX)))
}

fn too_deep(detail: String) -> SqlError {
    SqlError::new(SqlState::StatementTooComplex, "stack depth limit exceeded")
        .detail(detail)
        .hint("split the statement, or use IN, ANY or a join instead of long chains")
}

fn role(token: &Token, previous: Role) -> Role {
    match token {
        Token::LParen => Role::Open(Bracket::Paren),
        Token::RParen => Role::Close(Bracket::Paren),
        Token::LBracket => Role::Open(Bracket::Square),
        Token::RBracket => Role::Close(Bracket::Square),
        Token::Comma => Role::Comma,
        Token::Period => Role::Naming,
        // Without an operand before it, the star is all columns, or all rows of `count(*)`.
        Token::Mul if !matches!(previous, Role::Operand | Role::Operator | Role::Close(_)) => Role::Operand,
        Token::Word(word) if word.quote_style.is_some() || previous == Role::Naming => Role::Operand,
        Token::Word(word) => keyword_role(word.keyword, previous),
        Token::Number(..) | Token::SingleQuotedString(_) | Token::Placeholder(_) | Token::SemiColon => Role::Operand,
        _ => Role::Operator,
    }
}

fn keyword_role(keyword: Keyword, previous: Role) -> Role {
    // Where an operand must stand, a word that could begin a clause is a name.
    let wants_operand = matches!(previous, Role::Operator | Role::And | Role::Or | Role::Distinct);
    match keyword {
        Keyword::OR | Keyword::XOR => Role::Or,
        Keyword::AND => Role::And,
        Keyword::CASE => Role::Open(Bracket::Case),
        Keyword::END => Role::Close(Bracket::Case),
        Keyword::AS => Role::Naming,
        Keyword::DISTINCT => Role::Distinct,
        Keyword::UNION | Keyword::EXCEPT | Keyword::INTERSECT | Keyword::MINUS => Role::Set,
        Keyword::JOIN => Role::Join,
        Keyword::SELECT if !wants_operand => Role::Select,
        Keyword::FROM if !wants_operand => Role::From,
        Keyword::NOT
        | Keyword::IS
        | Keyword::NOTNULL
        | Keyword::IN
        | Keyword::BETWEEN
        | Keyword::LIKE
        | Keyword::ILIKE
        | Keyword::RLIKE
        | Keyword::REGEXP
        | Keyword::SIMILAR
        | Keyword::MATCH
        | Keyword::MEMBER
        | Keyword::OVERLAPS
        | Keyword::OPERATOR
        | Keyword::COLLATE
        | Keyword::AT
        | Keyword::DIV
        | Keyword::PRIOR => Role::Operator,
        Keyword::WHERE
        | Keyword::GROUP
        | Keyword::HAVING
        | Keyword::ORDER
        | Keyword::BY
        | Keyword::LIMIT
        | Keyword::ON
        | Keyword::USING
        | Keyword::WHEN
        | Keyword::THEN
        | Keyword::ELSE
        | Keyword::VALUES
        | Keyword::RETURNING
            if !wants_operand =>
        {
            Role::Clause
        }
        _ => Role::Operand,
    }
}
