import java.sql.*;
import java.util.Random;

/** Moves events of "input" to "output" by transactions of a member, until it is killed: JDBC. */
public class Once {
    public static void main(String[] args) {
        Random random = new Random();
        String url = "jdbc:postgresql://" + System.getenv("SERVER_HOST") + ":" + System.getenv("SERVER_PORT")
            + "/millstream?user=tester&connectTimeout=10";
        try (Connection c = DriverManager.getConnection(url); Statement s = c.createStatement()) {
            s.execute("DECLARE c CURSOR WITH HOLD FOR SELECT n FROM input"
                + " EMIT CHANGES WITH (group = 'once', auto_offset_reset = 'earliest')");
            c.setAutoCommit(false);
            PreparedStatement put = c.prepareStatement("INSERT INTO output VALUES (?, ?, 'jdbc')");
            while (true) {
                try {
                    ResultSet rows = s.executeQuery("FETCH 20 FROM c WITH (timeout = '100ms')");
                    while (rows.next()) {
                        put.setLong(1, rows.getLong(1));
                        put.setLong(2, 2 * rows.getLong(1));
                        put.addBatch();
                    }
                    put.executeBatch();
                    if (random.nextInt(10) == 0) c.rollback(); else c.commit();
                } catch (SQLException error) {
                    if (error.getSQLState() == null || error.getSQLState().startsWith("08") || c.isClosed()) throw error;
                    c.rollback();
                }
            }
        } catch (SQLException error) {
            System.err.println(error);
            System.exit(3);
        }
    }
}
