//! Functions whose value the session or the statement fixes: `now()`, `current_user`, `version()` …
//!
//! The planner puts their values into the plan. Leaves out what a setting's value is (`ports`). Pure.

use super::errors::external;
use crate::error::SqlError;
use crate::plan::PlanContext;
use crate::types::scalar_text;
use arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};
use millstream_catalog::SqlType;
use millstream_catalog::model::SqlState;

/// Every name [`session_value`] knows.
const NAMES: [&str; 25] = [
    "now",
    "current_timestamp",
    "transaction_timestamp",
    "statement_timestamp",
    "clock_timestamp",
    "localtimestamp",
    "current_date",
    "today",
    "current_time",
    "localtime",
    "version",
    "current_database",
    "current_catalog",
    "current_schema",
    "current_user",
    "user",
    "current_role",
    "session_user",
    "pg_backend_pid",
    "pg_is_in_recovery",
    "inet_client_addr",
    "inet_server_addr",
    "txid_current_if_assigned",
    "pg_my_temp_schema",
    "pg_advisory_unlock_all",
];

/// True for a function whose value is fixed before the plan runs.
pub fn is_session_function(name: &str) -> bool {
    NAMES.contains(&name)
}

/// True for a function whose value constant arguments fix, or that is refused whatever its arguments.
pub fn is_setting_function(name: &str) -> bool {
    matches!(name, "current_setting" | "current_schemas" | "set_config" | "txid_current" | "pg_current_xact_id")
}

/// The value of the function `name` of these literals in `context`; `None` stands for an argument that is no literal.
///
/// # Errors
/// 42704 for an unknown setting, 42883 for other arguments, 0A000 for what there is not.
pub fn setting_value(
    name: &str,
    args: &[Option<String>],
    context: &PlanContext,
) -> Result<(ScalarValue, SqlType), SqlError> {
    let text = |value: Option<String>| (ScalarValue::Utf8(value), SqlType::Text);
    match name {
        "set_config" => return Err(SqlError::unsupported("set_config()", "use SET name = value")),
        "txid_current" | "pg_current_xact_id" => {
            return Err(SqlError::unsupported(format!("{name}()"), "leave it out: transactions have no numbers"));
        }
        _ => {}
    }
    let args: Option<Vec<&str>> = args.iter().map(Option::as_deref).collect();
    let Some(args) = args else {
        return Err(SqlError::unsupported(
            format!("{name}() of what is not a literal"),
            "write the value, or use SHOW",
        ));
    };
    match (name, args.as_slice()) {
        ("current_setting", [setting] | [setting, "true" | "false"]) => match context.source.setting(setting) {
            None if args.last() != Some(&"true") => {
                let fact = format!("unrecognized configuration parameter \"{setting}\"");
                Err(SqlError::new(SqlState::UndefinedObject, fact))
            }
            value => Ok(text(value)),
        },
        ("current_schemas", [with_implicit @ ("true" | "false")]) => {
            let path = &context.settings.search_path;
            let implicit = (*with_implicit == "true" && !path.iter().any(|schema| schema == "pg_catalog"))
                .then_some("pg_catalog")
                .into_iter();
            let names = implicit.chain(path.iter().map(String::as_str));
            let names: Vec<ScalarValue> = names.map(|name| ScalarValue::Utf8(Some(name.to_owned()))).collect();
            let list = ScalarValue::List(ScalarValue::new_list_nullable(&names, &DataType::Utf8));
            Ok((list, SqlType::Array(Box::new(SqlType::Text))))
        }
        _ => {
            let fact = format!("function {name} does not take these arguments");
            Err(SqlError::new(SqlState::UndefinedFunction, fact))
        }
    }
}

/// True for functions of the clock.
pub fn is_clock_function(name: &str) -> bool {
    NAMES.iter().take(10).any(|clock| *clock == name)
}

/// The type of a clock function.
pub fn clock_type(name: &str) -> SqlType {
    match name {
        "localtimestamp" => SqlType::Timestamp,
        "current_date" | "today" => SqlType::Date,
        "current_time" | "localtime" => SqlType::Time,
        _ => SqlType::TimestampTz,
    }
}

/// The value of the function `name` in `context`.
///
/// # Errors
/// None in practice; a value that its type refuses is a defect.
pub fn session_value(name: &str, context: &PlanContext) -> Result<(ScalarValue, SqlType), SqlError> {
    const DAY: i64 = 86_400_000_000;
    let micros = context.now.micros();
    let settings = &context.settings;
    let text = |value: &str| (ScalarValue::Utf8(Some(value.to_owned())), SqlType::Text);
    Ok(match name {
        "localtimestamp" => (ScalarValue::TimestampMicrosecond(Some(micros), None), SqlType::Timestamp),
        "current_date" | "today" => {
            let day =
                i32::try_from(micros.div_euclid(DAY)).map_err(|_| SqlError::internal("the clock is out of range"))?;
            (ScalarValue::Date32(Some(day)), SqlType::Date)
        }
        "current_time" | "localtime" => (ScalarValue::Time64Microsecond(Some(micros.rem_euclid(DAY))), SqlType::Time),
        "version" => text(&settings.version),
        "current_database" | "current_catalog" => text(&settings.database),
        "current_schema" => match settings.search_path.first() {
            Some(schema) => text(schema),
            None => (ScalarValue::Utf8(None), SqlType::Text),
        },
        "current_user" | "user" | "current_role" | "session_user" => text(&settings.user),
        "pg_backend_pid" => (ScalarValue::Int32(Some(settings.backend_pid)), SqlType::Integer),
        "pg_my_temp_schema" => (scalar_text(&SqlType::Integer, b"0")?, SqlType::Integer),
        // There are no such locks; pools of drivers give up all when they take a connection back.
        "pg_advisory_unlock_all" => text(""),
        "pg_is_in_recovery" => (ScalarValue::Boolean(Some(false)), SqlType::Boolean),
        "inet_client_addr" | "inet_server_addr" | "txid_current_if_assigned" => {
            (ScalarValue::Utf8(None), SqlType::Text)
        }
        _ => (ScalarValue::TimestampMicrosecond(Some(micros), Some("UTC".into())), SqlType::TimestampTz),
    })
}

/// `now()` of a continuous query, which the streaming planner sets per step.
#[derive(Debug, PartialEq, Eq, Hash)]
struct StepNow {
    signature: Signature,
}

/// The function `now`.
pub(super) fn now_function() -> ScalarUDF {
    ScalarUDF::new_from_impl(StepNow { signature: Signature::exact(Vec::new(), Volatility::Stable) })
}

impl ScalarUDFImpl for StepNow {
    fn name(&self) -> &str {
        "now"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())))
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Err(external(SqlError::internal("now() was not set for this step")))
    }
}
