//! The cells of an INSERT: which are literals, parameters, defaults or expressions, decided once.
//!
//! Leaves out execution (`mod.rs`).

use super::Fill;
use super::target::{Shape, Target, place, position, value_error};
use crate::dialect::ast::is_default;
use crate::error::SqlError;
use crate::types::{ColumnBuilder, ValueError, integer_literal, is_assignable, scalar_first};
use datafusion::common::ScalarValue;
use millstream_catalog::SqlType;
use millstream_catalog::model::SqlState;
use millstream_catalog::model::limit::PARAMETERS_MAX;
use sqlparser::ast::{self, Expr, UnaryOperator, Value};
use std::ops::ControlFlow;

/// Evaluates an expression without parameters for a target of a type.
pub type PlanEval<'a> = &'a mut dyn FnMut(&Expr, &SqlType) -> Result<ScalarValue, SqlError>;

/// One value of one row.
#[derive(Debug, Clone)]
pub(super) enum Cell {
    Null,
    /// A converted literal.
    Constant(ScalarValue),
    /// A parameter read as the column's type.
    Param(usize),
    /// A parameter of another type, assigned to the column's.
    ParamOf(usize),
    /// Evaluated at each execution.
    Expr {
        expr: Box<Expr>,
        /// It has one value for all rows of a statement.
        is_stable: bool,
    },
}

/// Decides cells and collects parameter types.
pub(super) struct Planner<'a, 'b> {
    shape: &'a Shape,
    declared: &'a [Option<SqlType>],
    params: Vec<Option<SqlType>>,
    has_exprs: bool,
    eval: PlanEval<'b>,
}

impl<'a, 'b> Planner<'a, 'b> {
    pub(super) fn new(shape: &'a Shape, declared: &'a [Option<SqlType>], eval: PlanEval<'b>) -> Self {
        Self { shape, declared, params: declared.to_vec(), has_exprs: false, eval }
    }

    /// The parameter types, and whether expressions are left for execution.
    pub(super) fn finish(self) -> Result<(Vec<SqlType>, bool), SqlError> {
        let typed = |(i, sql_type): (usize, Option<SqlType>)| {
            let message = format!("could not determine data type of parameter ${}", i + 1);
            sql_type.ok_or_else(|| SqlError::new(SqlState::IndeterminateDatatype, message))
        };
        let params = self.params.into_iter().enumerate().map(typed).collect::<Result<_, _>>()?;
        Ok((params, self.has_exprs))
    }

    /// The fill of `target`, whose values stand at `given` in each row, or are all `default`.
    pub(super) fn fill(
        &mut self,
        target: Target,
        given: Option<usize>,
        rows: &[Vec<Expr>],
        row_count: usize,
        default: Option<&Expr>,
    ) -> Result<Fill, SqlError> {
        let default = match default {
            Some(expr) => Some(self.default_cell(expr, target)?),
            None => None,
        };
        let mut cells = Vec::with_capacity(row_count);
        // Constants go straight into a column: it is the result if there is nothing else.
        let mut builder = Some(ColumnBuilder::new(self.shape.sql_type(target), row_count));
        let mut given = given.map(|at| rows.iter().map(move |row| &row[at]));
        for row in 0..row_count {
            let expr = given.as_mut().and_then(Iterator::next).filter(|expr| !is_default(expr));
            let cell = match expr {
                Some(expr) => self.cell(expr, target, row + 1)?,
                None => default.clone().unwrap_or(Cell::Null),
            };
            match (&cell, &mut builder) {
                (Cell::Null, Some(builder)) => builder.append_null(),
                (Cell::Constant(value), Some(builder)) => builder.append_stored(value)?,
                _ => builder = None,
            }
            cells.push(cell);
        }
        Ok(match builder {
            Some(mut builder) => Fill::Constant(builder.finish()),
            None => Fill::Cells(cells),
        })
    }

    /// Defaults have no place in the statement.
    fn default_cell(&mut self, expr: &Expr, target: Target) -> Result<Cell, SqlError> {
        self.cell(expr, target, 1).map_err(|mut error| {
            error.position = None;
            error
        })
    }

    fn cell(&mut self, expr: &Expr, target: Target, row: usize) -> Result<Cell, SqlError> {
        let sql_type = self.shape.sql_type(target);
        let found = match expr {
            Expr::Nested(inner) => return self.cell(inner, target, row),
            Expr::Value(value) => match &value.value {
                Value::Placeholder(name) => {
                    return self.param(name, sql_type).map_err(|error| error.at(position(expr)));
                }
                Value::Number(text, _) => Some(number(text, sql_type)),
                other => literal(other, sql_type),
            },
            Expr::UnaryOp { op: op @ (UnaryOperator::Minus | UnaryOperator::Plus), expr: inner } => {
                match inner.as_ref() {
                    Expr::Value(value) => match &value.value {
                        Value::Number(text, _) if *op == UnaryOperator::Minus => {
                            Some(number(&format!("-{text}"), sql_type))
                        }
                        Value::Number(text, _) => Some(number(text, sql_type)),
                        _ => None,
                    },
                    _ => None,
                }
            }
            _ => None,
        };
        match found {
            Some(Ok(Some(value))) => Ok(Cell::Constant(value)),
            Some(Ok(None)) => Ok(Cell::Null),
            Some(Err(Refused::Type(from))) => Err(self.shape.type_error(target, from).at(position(expr))),
            Some(Err(Refused::Value(error))) => {
                Err(value_error(error, &place(row, self.shape.name(target))).at(position(expr)))
            }
            None => self.expr(expr, target, row),
        }
    }

    /// An expression: folded now if it is of literals only, else kept.
    fn expr(&mut self, expr: &Expr, target: Target, row: usize) -> Result<Cell, SqlError> {
        let sql_type = self.shape.sql_type(target).clone();
        let mut placeholders = Vec::new();
        let (mut is_foldable, mut is_stable) = (true, true);
        let flow = ast::visit_expressions(expr, |inner| {
            match inner {
                Expr::Value(value) => {
                    if let Value::Placeholder(name) = &value.value {
                        placeholders.push(name.clone());
                    }
                }
                Expr::Identifier(ident) => {
                    let message = format!("column \"{}\" does not exist", ident.value);
                    let error = SqlError::new(SqlState::UndefinedColumn, message).at(position(inner));
                    // A word alone is a column, or one of the SQL words that are functions.
                    if inner == expr && !is_function_word(&ident.value) {
                        return ControlFlow::Break(error);
                    }
                    is_foldable = false;
                }
                Expr::Function(function) => {
                    is_foldable = false;
                    is_stable &= is_function_word(&function.name.to_string());
                }
                Expr::Subquery(_) | Expr::Exists { .. } | Expr::InSubquery { .. } => {
                    (is_foldable, is_stable) = (false, false);
                }
                _ => {}
            }
            ControlFlow::Continue(())
        });
        if let ControlFlow::Break(error) = flow {
            return Err(error);
        }
        for name in &placeholders {
            self.param(name, &sql_type).map_err(|error| error.at(position(expr)))?;
        }
        if is_foldable && placeholders.is_empty() {
            let value = (self.eval)(expr, &sql_type).map_err(|error| match error.position {
                Some(_) => error,
                None => error.at(position(expr)),
            })?;
            let mut builder = ColumnBuilder::new(&sql_type, 1);
            append_scalar(&mut builder, &value, self.shape, target, row).map_err(|error| error.at(position(expr)))?;
            return Ok(if value.is_null() { Cell::Null } else { Cell::Constant(stored(&mut builder)?) });
        }
        self.has_exprs = true;
        Ok(Cell::Expr { expr: Box::new(expr.clone()), is_stable })
    }

    /// A parameter in a place of type `wanted`.
    fn param(&mut self, name: &str, wanted: &SqlType) -> Result<Cell, SqlError> {
        let number = name.strip_prefix('$').and_then(|digits| digits.parse::<usize>().ok());
        let index = number.and_then(|number| number.checked_sub(1)).filter(|index| *index < PARAMETERS_MAX);
        let Some(index) = index else {
            return Err(SqlError::new(SqlState::UndefinedParameter, format!("there is no parameter {name}")));
        };
        if self.params.len() <= index {
            self.params.resize(index + 1, None);
        }
        let given = self.params[index].get_or_insert_with(|| wanted.clone());
        let is_declared = self.declared.get(index).is_some_and(Option::is_some);
        if is_same_form(given, wanted) {
            return Ok(Cell::Param(index));
        }
        if is_declared && !is_assignable(given, wanted) {
            return Err(SqlError::new(
                SqlState::DatatypeMismatch,
                format!("parameter {name} is of type {given}, but a value of type {wanted} is needed"),
            )
            .hint("You will need to rewrite or cast the expression."));
        }
        Ok(Cell::ParamOf(index))
    }
}

/// True where the bytes of one type are read as the other without a cast.
fn is_same_form(given: &SqlType, wanted: &SqlType) -> bool {
    let is_string = |sql_type: &SqlType| matches!(sql_type, SqlType::Text | SqlType::Varchar(_) | SqlType::Char(_));
    given == wanted
        || is_string(given) && is_string(wanted)
        || matches!((given, wanted), (SqlType::Numeric { .. }, SqlType::Numeric { .. }))
}

/// Functions with one value for a statement, most of which may stand without parentheses.
fn is_function_word(word: &str) -> bool {
    const WORDS: &[&str] = &[
        "now",
        "current_date",
        "current_time",
        "current_timestamp",
        "localtime",
        "localtimestamp",
        "statement_timestamp",
        "transaction_timestamp",
        "current_user",
        "session_user",
        "user",
    ];
    WORDS.iter().any(|known| word.eq_ignore_ascii_case(known))
}

/// Why a literal was refused: its type, or its value.
enum Refused {
    Type(&'static str),
    Value(ValueError),
}

type Converted = Result<Option<ScalarValue>, Refused>;

/// A literal other than a number; `None` for what is not one.
fn literal(value: &Value, sql_type: &SqlType) -> Option<Converted> {
    let text = match value {
        Value::Null => return Some(Ok(None)),
        Value::SingleQuotedString(text)
        | Value::EscapedStringLiteral(text)
        | Value::UnicodeStringLiteral(text)
        | Value::NationalStringLiteral(text) => text,
        Value::DollarQuotedString(quoted) => &quoted.value,
        Value::Boolean(value) => {
            return Some(match sql_type {
                SqlType::Boolean => Ok(Some(ScalarValue::Boolean(Some(*value)))),
                SqlType::Text | SqlType::Varchar(_) | SqlType::Char(_) => {
                    converted(sql_type, if *value { b"true" } else { b"false" })
                }
                _ => Err(Refused::Type("boolean")),
            });
        }
        _ => return None,
    };
    Some(converted(sql_type, text.as_bytes()))
}

/// A number: an integer, bigint or numeric by its form, assigned to the column.
fn number(text: &str, sql_type: &SqlType) -> Converted {
    match sql_type {
        SqlType::SmallInt | SqlType::Integer | SqlType::BigInt => {
            integer_literal(text, sql_type).map(Some).map_err(Refused::Value)
        }
        SqlType::Real
        | SqlType::Double
        | SqlType::Numeric { .. }
        | SqlType::Text
        | SqlType::Varchar(_)
        | SqlType::Char(_) => converted(sql_type, text.as_bytes()),
        _ => Err(Refused::Type(match text.parse::<i64>() {
            Ok(value) if i32::try_from(value).is_ok() => "integer",
            Ok(_) => "bigint",
            Err(_) => "numeric",
        })),
    }
}

fn converted(sql_type: &SqlType, text: &[u8]) -> Converted {
    let mut builder = ColumnBuilder::new(sql_type, 1);
    builder.append_text(text).map_err(Refused::Value)?;
    stored(&mut builder).map(Some).map_err(|error| Refused::Value(ValueError::new(error.sqlstate, error.message)))
}

fn stored(builder: &mut ColumnBuilder) -> Result<ScalarValue, SqlError> {
    scalar_first(&builder.finish()).map_err(|_| SqlError::internal("a constant has no scalar form"))
}

/// Appends a scalar, with the names of column and type in what is refused.
pub(super) fn append_scalar(
    builder: &mut ColumnBuilder,
    value: &ScalarValue,
    shape: &Shape,
    target: Target,
    row: usize,
) -> Result<(), SqlError> {
    let text = value.try_as_str().flatten();
    let outcome = match (builder.sql_type(), text) {
        // DataFusion has no type of its own for these: an explicit cast in the expression has left text.
        (SqlType::Json | SqlType::Jsonb | SqlType::Uuid, Some(text)) => builder.append_text(text.as_bytes()),
        (document, Some(text)) if document.is_document() => builder.append_text(text.as_bytes()),
        _ => builder.append_scalar(value),
    };
    outcome.map_err(|error| match error.sqlstate {
        SqlState::DatatypeMismatch => {
            let from = SqlType::of_arrow(&value.data_type()).map_or_else(|| "unknown".to_owned(), |t| t.to_string());
            shape.type_error(target, &from)
        }
        _ => value_error(error, &place(row, shape.name(target))),
    })
}
