//! Every SQLSTATE the server sends, by PostgreSQL's condition names, and our class `SE`.
//!
//! Source: PostgreSQL 15 documentation, appendix A, "PostgreSQL Error Codes".

use std::fmt;

macro_rules! states {
    ($($(#[$doc:meta])* $name:ident = $code:literal,)*) => {
        /// A five-character SQLSTATE.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
        pub enum SqlState {
            $($(#[$doc])* $name,)*
        }
        impl SqlState {
            /// The five characters sent on the wire.
            pub const fn code(self) -> &'static str {
                match self { $(Self::$name => $code,)* }
            }
        }
    };
}

states! {
    /// `00000`
    SuccessfulCompletion = "00000",
    /// `01000`
    Warning = "01000",
    /// `08000`
    ConnectionException = "08000",
    /// `08P01`
    ProtocolViolation = "08P01",
    /// `0A000`
    FeatureNotSupported = "0A000",
    /// `21000`
    CardinalityViolation = "21000",
    /// `2201B`
    InvalidRegularExpression = "2201B",
    /// `2201E`
    InvalidArgumentForLogarithm = "2201E",
    /// `2201F`
    InvalidArgumentForPowerFunction = "2201F",
    /// `2201W`
    InvalidRowCountInLimitClause = "2201W",
    /// `2201X`
    InvalidRowCountInResultOffsetClause = "2201X",
    /// `22000`
    DataException = "22000",
    /// `2200G`
    MostSpecificTypeMismatch = "2200G",
    /// `22001`
    StringDataRightTruncation = "22001",
    /// `22003`
    NumericValueOutOfRange = "22003",
    /// `22004`
    NullValueNotAllowed = "22004",
    /// `2202E`
    ArraySubscriptError = "2202E",
    /// `22007`
    InvalidDatetimeFormat = "22007",
    /// `22008`
    DatetimeFieldOverflow = "22008",
    /// `22009`
    InvalidTimeZoneDisplacement = "22009",
    /// `22011`
    SubstringError = "22011",
    /// `22012`
    DivisionByZero = "22012",
    /// `22014`
    InvalidArgumentForNtile = "22014",
    /// `22015`
    IntervalFieldOverflow = "22015",
    /// `22021`
    CharacterNotInRepertoire = "22021",
    /// `22023`
    InvalidParameterValue = "22023",
    /// `22025`
    InvalidEscapeSequence = "22025",
    /// `22032`
    InvalidJsonText = "22032",
    /// `22P02`
    InvalidTextRepresentation = "22P02",
    /// `22P03`
    InvalidBinaryRepresentation = "22P03",
    /// `22P04`
    BadCopyFileFormat = "22P04",
    /// `22P05`
    UntranslatableCharacter = "22P05",
    /// `23502`
    NotNullViolation = "23502",
    /// `24000`
    InvalidCursorState = "24000",
    /// `25001`
    ActiveSqlTransaction = "25001",
    /// `25006`
    ReadOnlySqlTransaction = "25006",
    /// `3B001`
    InvalidSavepoint = "3B001",
    /// `25P01`
    NoActiveSqlTransaction = "25P01",
    /// `25P02`
    InFailedSqlTransaction = "25P02",
    /// `26000`
    InvalidSqlStatementName = "26000",
    /// `28000`
    InvalidAuthorizationSpecification = "28000",
    /// `28P01`
    InvalidPassword = "28P01",
    /// `2BP01`
    DependentObjectsStillExist = "2BP01",
    /// `34000`
    InvalidCursorName = "34000",
    /// `3D000`
    InvalidCatalogName = "3D000",
    /// `3F000`
    InvalidSchemaName = "3F000",
    /// `23505`
    UniqueViolation = "23505",
    /// `40001`
    SerializationFailure = "40001",
    /// `40P01`
    DeadlockDetected = "40P01",
    /// `42501`
    InsufficientPrivilege = "42501",
    /// `42601`
    SyntaxError = "42601",
    /// `42602`
    InvalidName = "42602",
    /// `42611`
    InvalidColumnDefinition = "42611",
    /// `42622`
    NameTooLong = "42622",
    /// `42701`
    DuplicateColumn = "42701",
    /// `42702`
    AmbiguousColumn = "42702",
    /// `42703`
    UndefinedColumn = "42703",
    /// `42704`
    UndefinedObject = "42704",
    /// `42710`
    DuplicateObject = "42710",
    /// `42712`
    DuplicateAlias = "42712",
    /// `42725`
    AmbiguousFunction = "42725",
    /// `42803`
    GroupingError = "42803",
    /// `42804`
    DatatypeMismatch = "42804",
    /// `42809`
    WrongObjectType = "42809",
    /// `42846`
    CannotCoerce = "42846",
    /// `42883`
    UndefinedFunction = "42883",
    /// `42939`
    ReservedName = "42939",
    /// `42P01`
    UndefinedTable = "42P01",
    /// `42P02`
    UndefinedParameter = "42P02",
    /// `42P03`
    DuplicateCursor = "42P03",
    /// `42P05`
    DuplicatePreparedStatement = "42P05",
    /// `42P07`
    DuplicateTable = "42P07",
    /// `42P10`
    InvalidColumnReference = "42P10",
    /// `42P16`
    InvalidTableDefinition = "42P16",
    /// `42P17`
    InvalidObjectDefinition = "42P17",
    /// `42P18`
    IndeterminateDatatype = "42P18",
    /// `42P20`
    WindowingError = "42P20",
    /// `53000`
    InsufficientResources = "53000",
    /// `53100`
    DiskFull = "53100",
    /// `53200`
    OutOfMemory = "53200",
    /// `53300`
    TooManyConnections = "53300",
    /// `53400`
    ConfigurationLimitExceeded = "53400",
    /// `54000`
    ProgramLimitExceeded = "54000",
    /// `54001`
    StatementTooComplex = "54001",
    /// `54011`
    TooManyColumns = "54011",
    /// `55000`
    ObjectNotInPrerequisiteState = "55000",
    /// `55006`
    ObjectInUse = "55006",
    /// `55P03`
    LockNotAvailable = "55P03",
    /// `57014`
    QueryCanceled = "57014",
    /// `57P01`
    AdminShutdown = "57P01",
    /// `57P03`
    CannotConnectNow = "57P03",
    /// `58000`
    SystemError = "58000",
    /// `58030`
    IoError = "58030",
    /// `XX000`
    InternalError = "XX000",
    /// `XX001`
    DataCorrupted = "XX001",
    /// `SE001`: offset below the log start.
    OffsetBelowLogStart = "SE001",
    /// `SE002`: offset above the log end.
    OffsetAboveLogEnd = "SE002",
    /// `SE003`: no committed offset.
    NoCommittedOffset = "SE003",
    /// `SE004`: group member fenced.
    GroupMemberFenced = "SE004",
    /// `SE005`: schema incompatible.
    SchemaIncompatible = "SE005",
    /// `SE006`: checkpoint incompatible.
    CheckpointIncompatible = "SE006",
    /// `SE007`: no leader for the partition.
    NoLeader = "SE007",
}

impl fmt::Display for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}
